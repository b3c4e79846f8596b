"""For all tests."""

from hypothesis import settings

# How long an example takes says something of the machine, not of the code.
settings.register_profile("untimed", settings.get_profile(settings.get_current_profile_name()), deadline=None)
settings.load_profile("untimed")
