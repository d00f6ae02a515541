"""Before any test module imports Ray: the environment in which the engine runs it."""

from hypothesis import settings

from service import cluster

cluster.configure()
settings.register_profile("no-deadline", deadline=None)  # how fast a busy machine draws an example is no property
settings.load_profile("no-deadline")
