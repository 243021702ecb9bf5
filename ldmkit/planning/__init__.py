"""What a recipe would train: shapes, parameters, memory and FLOPs, on meta tensors."""

from ldmkit.planning.estimate import Part, Plan, plan

__all__ = ["Part", "Plan", "plan"]
