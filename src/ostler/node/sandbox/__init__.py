"""The sandbox of attempts: plans for each level, the files they need, and what this host can do."""

from ostler.node.sandbox.abilities import abilities, observe
from ostler.node.sandbox.binaries import needed
from ostler.node.sandbox.host import Host
from ostler.node.sandbox.plans import Gate, SandboxPlan, plan

__all__ = ["Gate", "Host", "SandboxPlan", "abilities", "needed", "observe", "plan"]
