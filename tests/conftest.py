"""Before any test module imports Ray: the environment in which the engine runs it."""

from service import cluster

cluster.configure()
