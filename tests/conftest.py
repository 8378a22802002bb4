"""Settings that all tests share.

Programs that tests start get ``-P``: they import the installed package, not the source tree in the working directory.
"""

from hypothesis import settings

# Tests never time anything: a busy machine must not fail one.
settings.register_profile("fastmtr", deadline=None)
settings.load_profile("fastmtr")
