"""What answers over HTTP: the API under /v1, health and metrics. The console is beside it, in ``orchestrator/service/console``."""
