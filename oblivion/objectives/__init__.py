"""Local losses: learning and unlearning objectives, one per file."""

from oblivion.registry import Registry

objectives = Registry(
    "objective",
    {
        "blur_npo": "oblivion.objectives.blur_npo:BlurNPO",
        "dpo": "oblivion.objectives.dpo:DPO",
        "grad_ascent": "oblivion.objectives.grad_ascent:GradAscent",
        "grad_diff": "oblivion.objectives.grad_diff:GradDiff",
        "lm": "oblivion.objectives.lm:LanguageModel",
        "npo": "oblivion.objectives.npo:NPO",
        "rmu": "oblivion.objectives.rmu:RMU",
        "shred": "oblivion.objectives.shred:Shred",
        "simnpo": "oblivion.objectives.simnpo:SimNPO",
    },
    needs=("loss", "needs", "accepts_retain", "reduction"),
)
get, names, describe = objectives.get, objectives.names, objectives.describe
"""Once it is imported, this package hides the table of the same name at the front door, so it answers as the table."""
