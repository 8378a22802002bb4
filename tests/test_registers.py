"""The ceilings of CUDA kernels' registers: what the compiler reports is read, and what is above fails."""

import shutil

import pytest

registers = pytest.importorskip("registers", reason="bench/ is not there: a source distribution has none")

# As nvcc 13.0 writes it.
REPORT = """[1/3] Building CUDA object backend.cu.o
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN7fastmtr6device5scoreI6__halfEEvNS0_4ArgsE' for 'sm_80'
ptxas info    : Function properties for _ZN7fastmtr6device5scoreI6__halfEEvNS0_4ArgsE
    64 bytes stack frame, 0 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 121 registers, used 1 barriers, 64 bytes cumulative stack size, 4096 bytes smem, 752 bytes cmem[0]
ptxas info    : Compile time = 812.304 ms
ptxas info    : Function properties for _ZN7fastmtr6device8run_stepEv
    16 bytes stack frame, 8 bytes spill stores, 0 bytes spill loads
ptxas info    : Compiling entry function '_ZN7fastmtr6device4copyENS0_4ArgsE' for 'sm_90'
ptxas info    : Function properties for _ZN7fastmtr6device4copyENS0_4ArgsE
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 22 registers, used 0 barriers
"""
SCORE = {"registers": 121, "spill_bytes": 20, "stack_bytes": 64, "shared_bytes": 4096}
COPY = {"registers": 22, "spill_bytes": 0, "stack_bytes": 0, "shared_bytes": 0}


def test_the_report_is_read() -> None:
    found = dict(registers.kernels_of(REPORT))
    assert list(found.values()) == [SCORE, COPY]
    if shutil.which("c++filt"):
        assert registers.readable(list(found)) == ["score<__half> sm_80", "copy sm_90"]


@pytest.mark.parametrize(
    ("mangled", "short"),
    [
        ("void a::b::f<a::half_t, (a::Layout)0>(a::b::Args<a::half_t>) sm_90", "f<half_t, (Layout)0> sm_90"),
        ("a::(anonymous namespace)::f(a::Args) sm_80", "f sm_80"),
    ],
)
def test_names_are_short(mangled: str, short: str) -> None:
    assert registers.short(mangled) == short


def test_a_report_of_another_form_is_refused() -> None:
    with pytest.raises(ValueError, match="not of the expected form"):
        list(registers.kernels_of(REPORT.replace("Used", "Takes")))


def test_what_is_above_its_ceiling() -> None:
    ceilings = {"score": SCORE, "copy": COPY}
    assert registers.above({"score": SCORE, "copy": COPY}, ceilings) == []
    assert registers.above({"score": SCORE | {"registers": 64}, "copy": COPY}, ceilings) == []
    for what in registers.WHAT:
        (wrong,) = registers.above({"score": SCORE, "copy": COPY | {what: 23}}, ceilings)
        assert wrong == f"copy: {what} 23, at most {COPY[what]} expected"
    assert registers.above({"score": SCORE, "rank": COPY}, ceilings) == ["rank has no ceiling", "copy is gone"]
