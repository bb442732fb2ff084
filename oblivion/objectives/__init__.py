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
get, names = objectives.get, objectives.names
"""``oblivion.objectives`` is this package once it is imported, and the table until then: it can be asked either way."""
