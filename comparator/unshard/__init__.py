"""From the arrays of all ranks in one step to arrays of whole tokens: a plan from metadata, then its execution."""

from comparator.unshard.execute import ReplicaDifference, Unsharded, unshard
from comparator.unshard.plan import Operation, Part, Shard, UnshardPlan, plan_unshard

__all__ = [
    "Operation",
    "Part",
    "ReplicaDifference",
    "Shard",
    "UnshardPlan",
    "Unsharded",
    "plan_unshard",
    "unshard",
]
