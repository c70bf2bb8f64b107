from hypothesis import settings

# the machine may be busy: time limits per example would make these tests flaky
settings.register_profile("ops", deadline=None)
settings.load_profile("ops")
