"""Settings that all tests share."""

from hypothesis import settings

# Tests never time anything: a busy machine must not fail one.
settings.register_profile("fastmtr", deadline=None)
settings.load_profile("fastmtr")
