"""`worker.cluster:app`: the former name of the Ray Serve application, kept for deployment files that import it."""

from worker.entrypoints.ray_serve import app

__all__ = ["app"]
