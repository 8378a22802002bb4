"""Models of scikit-learn: linear models, calibrated linear SVMs and perceptrons, alone or after transformers."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from fastmtr.convert import lookups
from fastmtr.convert.inputs import ModelInputs
from fastmtr.convert.products import weighted
from fastmtr.convert.registry import Conversion, Options
from fastmtr.convert.tensors import Tensors, Value
from fastmtr.convert.values import Raw, Rows
from fastmtr.errors import ConversionError
from fastmtr.graph import Domain, Packed

__all__ = ["convert_model"]

_Step: TypeAlias = Callable[[Tensors, Any, Any], Any]
_Handler = TypeVar("_Handler", bound=_Step)

_TRANSFORMERS: dict[str, _Step] = {}
_ESTIMATORS: dict[str, _Step] = {}
"""By the name of the class. An estimator gives one column a task: the value of a regression, the probability of the
second of two classes, or those of all of more classes."""
_MOST_CODED = 4096


def convert_model(model: Any, options: Options) -> Conversion:
    """The conversion of a fitted estimator, or of a dict of them by task that read the same columns.

    The sample is the matrix X that the estimator takes, or a data frame; ``columns`` names the columns of a matrix. A
    category that a OneHotEncoder does not know counts as none of its categories, also where the encoder would raise.
    """
    if options.sample is None:
        raise ConversionError(
            f"converting a {type(model).__name__} needs sample=: some rows of the X that it was fitted on, with "
            "columns= to name the columns of a matrix"
        )
    estimators = copy.deepcopy(dict(model) if isinstance(model, Mapping) else {"": model})
    matrix, columns = _matrix(options, next(iter(estimators.values())))
    inputs = ModelInputs({"X": matrix}, replace(options, columns=columns))
    names = _task_names(estimators, options)
    ids: set[int] = set()
    for _ in range(2):  # the first pass finds out which columns are ids
        t = Tensors(inputs.inputs, inputs.columns, ids=ids)
        for label, estimator in estimators.items():
            t.scope = label
            made = t.packed(t.rows(_estimated(t, estimator, inputs.raw("X"))))
            for i, task in enumerate(names[label]):
                t.builder.output(task, t.cut(made.name, i, 1))
        ids = t.ids
    graph = inputs.settle(t.builder.build())
    framed = columns is not None and hasattr(options.sample, "columns")
    source = _Source(estimators, names, inputs, list(columns or {}) if framed else None)
    return Conversion(graph, source, inputs.pack(), tuple(inputs.notes))


def _matrix(options: Options, estimator: Any) -> tuple[NDArray[Any], Mapping[str, int | tuple[int, int]] | None]:
    """The sample as one matrix, and the names of its columns."""
    sample, columns = options.sample, options.columns
    named = getattr(sample, "columns", None)
    names = getattr(estimator, "feature_names_in_", None)
    if isinstance(sample, Mapping):
        order = list(sample) if names is None else [str(n) for n in names]
        missing = [n for n in order if n not in sample]
        if missing:
            raise ConversionError(f"the sample lacks the columns {missing} that the model was fitted on")
        parts = [np.asarray(sample[n]) for n in order]
        blocks = [p[:, None] if p.ndim == 1 else p for p in parts]
        ends = np.cumsum([b.shape[1] for b in blocks]).tolist()
        spans: dict[str, int | tuple[int, int]] = {
            n: (end - b.shape[1], end) for n, b, end in zip(order, blocks, ends, strict=True)
        }
        matrix, columns = np.concatenate(blocks, axis=1), spans if columns is None else columns
    else:
        matrix = np.asarray(sample)
        if named is not None:
            columns = {str(n): i for i, n in enumerate(named)}
    if matrix.ndim != 2 or matrix.dtype.kind not in "fiub":
        raise ConversionError(
            f"the sample must be a matrix of numbers, found {matrix.dtype} of shape {matrix.shape}; encode text as "
            "whole numbers before the model"
        )
    return matrix, columns


def _task_names(estimators: Mapping[str, Any], options: Options) -> dict[str, list[str]]:
    """The tasks of each estimator."""
    counts = {label: _n_outputs(estimator) for label, estimator in estimators.items()}
    given = options.task_names
    if given is None:
        given = []
        for label, n in counts.items():
            classes = getattr(estimators[label], "classes_", None)
            each = (
                [""] if n == 1 else range(n) if classes is None or len(classes) != n else np.asarray(classes).tolist()
            )
            given += ["_".join(part for part in (label, str(one)) if part) or "score" for one in each]
    if len(given) != sum(counts.values()):
        raise ConversionError(
            f"the model has {sum(counts.values())} outputs, but {len(given)} tasks are named: {list(given)}"
        )
    free = iter(given)
    return {label: [next(free) for _ in range(n)] for label, n in counts.items()}


def _n_outputs(estimator: Any) -> int:
    classes = getattr(estimator, "classes_", None)
    if classes is not None and len(classes):
        several = getattr(_last(estimator), "_label_binarizer", None)
        if several is not None and several.y_type_ == "multilabel-indicator":
            return len(classes)
        return 1 if len(classes) == 2 else len(classes)
    coefficients = np.asarray(getattr(_last(estimator), "coef_", np.zeros(1)))
    return int(getattr(_last(estimator), "n_outputs_", 1 if coefficients.ndim == 1 else coefficients.shape[0]))


def _last(estimator: Any) -> Any:
    return estimator.steps[-1][1] if type(estimator).__name__ == "Pipeline" else estimator


@dataclass(frozen=True)
class _Coded:
    """The columns of a one-hot code, of which a layer makes a table of its own.

    Parameters
    ----------
    ids : Raw
        One column.
    places : ndarray of int, shape (ids,)
        The column of the code that is 1 for this id; -1: none.
    width : int
    """

    ids: Raw
    places: NDArray[np.int64]
    width: int


@dataclass(frozen=True)
class _Joined:
    """Columns side by side, some of them coded."""

    parts: tuple[Rows | Raw | _Coded, ...]


def _parts(x: Any) -> tuple[Rows | Raw | _Coded, ...]:
    return x.parts if isinstance(x, _Joined) else (x,)


def _width(x: Rows | Raw | _Coded) -> int:
    return x.width if isinstance(x, _Coded) else x.shape.inner[0]


def _plain(t: Tensors, x: Any) -> Value:
    """Columns of numbers, for a step that looks at each of them."""
    made: list[Value] = []
    for part in _parts(x):
        if isinstance(part, _Coded):
            if part.width > _MOST_CODED:
                raise ConversionError(
                    f"a one-hot code of {part.width} columns has to stand right before a linear layer, so that it "
                    "becomes a table; leave out what stands between"
                )
            part = _looked_up(t, part, np.eye(part.width))
        made.append(part)
    return t.cat(made, 0)


def _looked_up(t: Tensors, code: _Coded, rows: NDArray[Any]) -> Rows:
    """What a matrix with a row for each column of the code gives."""
    table = np.where(code.places[:, None] < 0, 0.0, rows[code.places])
    return lookups.embedding(t, code.ids, table, t.name("codes"))


# ---- what is computed ------------------------------------------------------------------------------------------------


def _estimates(*names: str) -> Callable[[_Handler], _Handler]:
    return _adds(_ESTIMATORS, names)


def _transforms(*names: str) -> Callable[[_Handler], _Handler]:
    return _adds(_TRANSFORMERS, names)


def _adds(table: dict[str, _Step], names: Sequence[str]) -> Callable[[_Handler], _Handler]:
    def add(handler: _Handler) -> _Handler:
        table.update(dict.fromkeys(names, handler))
        return handler

    return add


def _estimated(t: Tensors, estimator: Any, x: Any) -> Value:
    found: Value = _applied(_ESTIMATORS, "estimator", t, estimator, x)
    return found


def _transformed(t: Tensors, transformer: Any, x: Any) -> Any:
    if transformer is None or (isinstance(transformer, str) and transformer == "passthrough"):
        return x
    return _applied(_TRANSFORMERS, "transformer", t, transformer, x)


def _applied(table: dict[str, _Step], what: str, t: Tensors, step: Any, x: Any) -> Any:
    kind = type(step).__name__
    if kind not in table:
        raise ConversionError(f"the {what} {kind} has no counterpart in a graph; there are {', '.join(sorted(table))}")
    try:
        return table[kind](t, step, x)
    except AttributeError as error:
        raise ConversionError(f"the {what} {kind} is not fitted, or of an unknown version: {error}") from error


@_estimates("Pipeline")
def _pipeline(t: Tensors, model: Any, x: Any) -> Value:
    *steps, (_, last) = model.steps
    for _, step in steps:
        x = _transformed(t, step, x)
    return _estimated(t, last, x)


@_transforms("Pipeline")
def _transforming_pipeline(t: Tensors, model: Any, x: Any) -> Any:
    for _, step in model.steps:
        x = _transformed(t, step, x)
    return x


@_transforms("ColumnTransformer")
def _column_transformer(t: Tensors, model: Any, x: Any) -> _Joined:
    whole = _plain(t, x)
    parts: list[Rows | Raw | _Coded] = []
    for _, transformer, chosen in model.transformers_:
        if isinstance(transformer, str) and transformer == "drop":
            continue
        places = _places(model, chosen, whole)
        if places:
            parts += _parts(_transformed(t, transformer, t.take(whole, 0, places)))
    return _Joined(tuple(parts))


def _places(model: Any, chosen: Any, x: Value) -> list[int]:
    every = np.arange(x.shape.inner[0])
    if isinstance(chosen, slice) and not isinstance(chosen.start or chosen.stop, str):
        return [int(i) for i in every[chosen]]
    asked = np.atleast_1d(np.asarray(chosen))
    if asked.dtype.kind in "UO" and asked.size:
        names = [str(n) for n in model.feature_names_in_]
        return [names.index(str(n)) for n in asked]
    return [int(i) for i in every[asked if asked.dtype == bool else asked.astype(int)]]


@_transforms("StandardScaler")
def _standard(t: Tensors, model: Any, x: Any) -> Value:
    scale = 1.0 if model.scale_ is None else model.scale_
    return _scaled(t, x, 1 / scale, -(0.0 if model.mean_ is None else model.mean_) / scale)


@_transforms("MinMaxScaler")
def _min_max(t: Tensors, model: Any, x: Any) -> Value:
    made = _scaled(t, x, model.scale_, model.min_)
    if model.clip:
        low, high = (t.constant(made, v) for v in model.feature_range)
        made = t.binary(t.binary(made, low, "max"), high, "min")
    return made


@_transforms("MaxAbsScaler")
def _max_abs(t: Tensors, model: Any, x: Any) -> Value:
    return _scaled(t, x, 1 / model.scale_, 0.0)


@_transforms("RobustScaler")
def _robust(t: Tensors, model: Any, x: Any) -> Value:
    scale = 1.0 if model.scale_ is None else model.scale_
    center = 0.0 if model.center_ is None else model.center_
    return _scaled(t, x, 1 / np.asarray(scale), -np.asarray(center) / scale)


def _scaled(t: Tensors, x: Any, scale: Any, shift: Any) -> Rows:
    return t.shift(t.scale(t.rows(_plain(t, x)), scale), shift)


@_transforms("FunctionTransformer")
def _function(t: Tensors, model: Any, x: Any) -> Any:
    if model.func is not None:
        raise ConversionError("a FunctionTransformer with a function has no counterpart; one that passes through has")
    return x


@_transforms("Normalizer")
def _normalizer(t: Tensors, model: Any, x: Any) -> Value:
    if model.norm != "l2":
        raise ConversionError(f"a Normalizer with norm {model.norm!r} has no counterpart; 'l2' has")
    return t.l2_normalize(_plain(t, x), [0], eps=float(np.finfo(np.float32).tiny))


@_transforms("PCA", "TruncatedSVD")
def _projection(t: Tensors, model: Any, x: Any) -> Value:
    w = model.components_
    if getattr(model, "whiten", False):
        w = w / np.sqrt(model.explained_variance_)[:, None]
    mean = getattr(model, "mean_", None)
    return _linear(t, x, w, np.zeros(len(w)) if mean is None else -w @ mean)


@_transforms("OneHotEncoder")
def _one_hot(t: Tensors, model: Any, x: Any) -> _Joined:
    if not isinstance(x, Raw):
        raise ConversionError("a OneHotEncoder of computed numbers has no counterpart; it must read columns of X")
    if model.handle_unknown == "error":  # a request is not refused: what is unknown counts as none of the categories
        model.handle_unknown = "ignore"
    parts: list[_Coded] = []
    for i, known in enumerate(model.categories_):
        numbers = np.asarray(known)
        if numbers.dtype.kind not in "iuf" or (numbers < 0).any() or (numbers != numbers.astype(int)).any():
            raise ConversionError(
                f"the categories of column {i} are {numbers[:3].tolist()}...; they must be whole numbers from 0 to be "
                "ids: encode them before the model"
            )
        places = np.full(int(numbers.max()) + 2, -1)  # with room for one that the encoder does not know
        kept = [c for c in range(len(numbers)) if model.drop_idx_ is None or model.drop_idx_[i] != c]
        places[numbers.astype(int)[kept]] = np.arange(len(kept))
        ids = t.squeeze(t.slice(x, 0, i, 1), 0)
        assert isinstance(ids, Raw)
        parts.append(_Coded(ids, places, len(kept)))
    if getattr(model, "_infrequent_enabled", False):
        raise ConversionError("a OneHotEncoder that gathers infrequent categories has no counterpart")
    return _Joined(tuple(parts))


def _linear(t: Tensors, x: Any, w: NDArray[Any], b: NDArray[Any], *, name: str = "") -> Rows:
    """``w x + b``, of a one-hot code by looking up columns of w."""
    w, parts = np.atleast_2d(w), _parts(x)
    ends = np.cumsum([_width(part) for part in parts]).tolist()
    share = {id(p): w[:, end - _width(p) : end] for p, end in zip(parts, ends, strict=True)}
    plain = [p for p in parts if not isinstance(p, _Coded)]
    terms = [_looked_up(t, p, share[id(p)].T) for p in parts if isinstance(p, _Coded)]
    if plain:
        joined = t.numbers(t.cat(plain, 0))
        own = np.concatenate([share[id(p)] for p in plain], axis=1)
        shape = joined.shape.with_size(0, len(w))
        terms.append(weighted(t, joined, ["k"], own, ["n", "k"], ["n"], shape=shape, bias=np.ravel(b), name=name))
    total = reduce(lambda one, other: t.binary(one, other, "add"), terms)
    return total if plain else t.shift(total, np.ravel(b))


@_estimates(
    "LinearRegression",
    "Ridge",
    "RidgeCV",
    "Lasso",
    "LassoCV",
    "ElasticNet",
    "ElasticNetCV",
    "LinearSVR",
    "SGDRegressor",
    "HuberRegressor",
    "BayesianRidge",
)
def _regression(t: Tensors, model: Any, x: Any) -> Value:
    return _linear(t, x, model.coef_, model.intercept_)


@_estimates("LogisticRegression", "LogisticRegressionCV")
def _logistic(t: Tensors, model: Any, x: Any) -> Value:
    logits = _linear(t, x, model.coef_, model.intercept_)
    if len(model.classes_) == 2:
        return t.unary(logits, "sigmoid")
    return t.softmax(logits, 0)


@_estimates("SGDClassifier")
def _sgd(t: Tensors, model: Any, x: Any) -> Value:
    if model.loss != "log_loss" or len(model.classes_) != 2:
        raise ConversionError(
            f"an SGDClassifier with loss {model.loss!r} and {len(model.classes_)} classes has no counterpart; with "
            "'log_loss' and two classes it has"
        )
    return t.unary(_linear(t, x, model.coef_, model.intercept_), "sigmoid")


@_estimates("LinearSVC")
def _bare_svm(t: Tensors, model: Any, x: Any) -> Value:
    raise ConversionError("a LinearSVC gives no probabilities: fit a CalibratedClassifierCV of it")


@_estimates("CalibratedClassifierCV")
def _calibrated(t: Tensors, model: Any, x: Any) -> Value:
    if len(model.classes_) != 2:
        raise ConversionError(
            f"a CalibratedClassifierCV of {len(model.classes_)} classes has no counterpart; of two it has"
        )
    slopes, weights, offsets = [], [], []
    for fold in model.calibrated_classifiers_:
        (calibrator,) = fold.calibrators
        if not hasattr(calibrator, "a_"):
            raise ConversionError(
                f"a calibration by {type(calibrator).__name__} has no counterpart; method='sigmoid' has"
            )
        inner = fold.estimator
        if not hasattr(inner, "coef_"):
            raise ConversionError(
                f"a CalibratedClassifierCV of a {type(inner).__name__} has no counterpart; of a linear model "
                "it has (put transformers in a Pipeline before it)"
            )
        weights.append(np.ravel(inner.coef_))
        offsets.append(float(np.ravel(inner.intercept_)[0]))
        slopes.append((float(calibrator.a_), float(calibrator.b_)))
    a, b = np.array(slopes).T
    # The probability of a fold is 1 / (1 + exp(a f + b)) of its decision f.
    logits = _linear(t, x, -a[:, None] * np.array(weights), -(a * np.array(offsets) + b))
    return t.reduce(t.unary(logits, "sigmoid"), "mean", [0], keep=True)


@_estimates("MLPClassifier", "MLPRegressor")
def _perceptron(t: Tensors, model: Any, x: Any) -> Value:
    functions = {"identity": "none", "relu": "relu", "tanh": "tanh", "logistic": "sigmoid", "exp": "exp"}
    for i, (w, b) in enumerate(zip(model.coefs_, model.intercepts_, strict=True)):
        x = _linear(t, x, w.T, b, name=f"layer{i}")
        last = i == len(model.coefs_) - 1
        if last and model.out_activation_ == "softmax":
            return t.softmax(x, 0)
        x = t.unary(x, functions[model.out_activation_ if last else model.activation])
    made: Value = x
    return made


# ---- the source ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Source:
    """The estimators that a graph was made from."""

    estimators: Mapping[str, Any]
    tasks: Mapping[str, Sequence[str]]
    inputs: ModelInputs
    frame: Sequence[str] | None

    @property
    def name(self) -> str:
        """Where the graph comes from."""
        kinds = dict.fromkeys(type(_last(e)).__name__ for e in self.estimators.values())
        return f"scikit-learn {', '.join(kinds)}"

    def score(self, packed: Mapping[Domain, Packed]) -> dict[str, NDArray[Any]]:
        """The estimators' own probabilities and values."""
        matrix = self.inputs.unpack(packed)["X"]
        rows: Any = matrix
        if self.frame is not None:
            import pandas as pd

            rows = pd.DataFrame(matrix, columns=list(self.frame))
        found = {}
        for label, estimator in self.estimators.items():
            score = estimator.predict_proba if hasattr(estimator, "predict_proba") else estimator.predict
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Found unknown categories", UserWarning)
                values = np.asarray(score(rows)).reshape(len(matrix), -1)
            names = self.tasks[label]
            values = values[:, -len(names) :]
            found.update({task: values[:, [i]] for i, task in enumerate(names)})
        return found

    def layers(self, packed: Mapping[Domain, Packed]) -> dict[str, NDArray[Any]]:
        """Nothing: estimators keep no inner values."""
        return {}
