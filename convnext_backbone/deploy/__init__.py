"""Networks as files that run without this package."""

from .check import DisagreementError
from .folder import DeployResult, deploy_model

__all__ = ["DeployResult", "DisagreementError", "deploy_model"]
