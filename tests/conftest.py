"""Before any test module imports Ray: the environment in which the engine runs it."""

from hypothesis import settings

from service import cluster

cluster.configure()
settings.register_profile("oec", deadline=None)  # how long an example takes says how busy the machine is
settings.load_profile("oec")
