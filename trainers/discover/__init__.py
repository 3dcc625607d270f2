"""From calls to tasks: structure first, then density inside it; ids stay from night to night."""

from trainers.discover.discover import DiscoveryContended, TaskSummary, discover
from trainers.discover.purity import purity

__all__ = ["DiscoveryContended", "TaskSummary", "discover", "purity"]
