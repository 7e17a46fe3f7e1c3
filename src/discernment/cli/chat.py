"""`discern chat`: talk to a model."""

from typing import Annotated

import typer
from rich.prompt import Prompt

from discernment.cli.console import console, prepare_process, say
from discernment.cli.options import ModelOptions, System, parse_policy


def chat(
    model: Annotated[
        str, typer.Argument(help="Hub id, folder, wheel://PACKAGE, or RUN/METHOD, e.g. runs/quickstart/dcr.")
    ],
    system: System = None,
    model_option: ModelOptions = None,
    max_new_tokens: Annotated[int, typer.Option(help="Token cap of a reply.")] = 128,
) -> None:
    """Talk to a model; each reply comes with its rejection probability."""
    prepare_process()
    from discernment.judges import KeywordJudge
    from discernment.policies.policy import Policy
    from discernment.policies.rejection import rejection_probability

    policy = Policy.load(parse_policy(model, system, model_option), name=model)
    say("Each prompt stands for itself; an empty line ends.")
    while True:
        try:
            prompt = Prompt.ask("[bold]you[/bold]", console=console)
        except EOFError:
            return
        if not prompt.strip():
            return
        refusal = rejection_probability(policy, [prompt])[0]
        reply = policy.generate(policy.encode([prompt]), max_new_tokens)[0]
        say(reply.text)
        verdict = KeywordJudge().judge(prompt, reply.text)
        say(f"rejection probability {refusal:.3f}, judged {verdict}", "dim")
