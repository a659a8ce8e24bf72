"""What the tests of the data share: properties are not timed, because other processes may have the cores."""

from hypothesis import settings

settings.register_profile("data", deadline=None)
settings.load_profile("data")
