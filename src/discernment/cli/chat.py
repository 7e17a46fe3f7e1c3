"""`discern chat`: talk to a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.prompt import Prompt

from discernment.cli.console import console, prepare_process, say
from discernment.cli.options import ModelOptions, System, parse_policy
from discernment.files import encodable

if TYPE_CHECKING:
    from discernment.policies.policy import Policy
    from discernment.policies.served import ServedPolicy


def chat(
    model: Annotated[
        str,
        typer.Argument(
            help="Hub id, folder, wheel://PACKAGE, openai:NAME@URL, or RUN/METHOD, e.g. runs/quickstart/dcr."
        ),
    ],
    system: System = None,
    model_option: ModelOptions = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Token cap of a reply.")] = 128,
) -> None:
    """Talk to a model; each reply comes with its rejection probability."""
    prepare_process()
    from discernment.errors import DataError
    from discernment.policies.served import ServedPolicy, load_policy

    policy = load_policy(parse_policy(model, system, model_option), name=model)
    say("Each prompt stands for itself; an empty line ends.")
    while True:
        try:
            # A terminal of another encoding gives halves of surrogate pairs.
            prompt = encodable(Prompt.ask("[bold]you[/bold]", console=console))
        except EOFError:
            return
        if not prompt.strip():
            return
        try:
            if isinstance(policy, ServedPolicy):
                _say_served(policy, prompt, max_new_tokens)
            else:
                _say_local(policy, prompt, max_new_tokens)
        except DataError as error:  # this prompt does not fit the model; the next one may
            say(str(error), "red")


def _say_local(policy: Policy, prompt: str, max_new_tokens: int) -> None:
    from discernment.policies.context import check_context
    from discernment.policies.rejection import rejection_probability

    sequences = policy.encode([prompt])
    check_context(policy, sequences, [repr(prompt[:60])], max_new_tokens, "say less or lower the cap")
    refusal = rejection_probability(policy, [prompt])[0]
    reply = policy.generate(sequences, max_new_tokens)[0].text
    say(reply)
    say(f"rejection probability {refusal:.3f}, judged {_verdict(prompt, reply)}", "dim")


def _say_served(policy: ServedPolicy, prompt: str, max_new_tokens: int) -> None:
    from discernment.errors import DiscernmentError

    try:
        served = policy.ask(prompt, max_new_tokens)
    except DiscernmentError:
        raise
    except Exception as error:  # whatever an endpoint does, the next prompt may be replied to
        say(f"The endpoint failed ({policy.endpoint.in_words(error)}).", "red")
        return
    reply = served.completion.text
    say(reply)
    verdict = f"unscored ({served.unscored})" if served.unscored else _verdict(prompt, reply)
    say(f"{_refusal(policy, prompt)}, judged {verdict}", "dim")


def _refusal(policy: ServedPolicy, prompt: str) -> str:
    from discernment.errors import DiscernmentError
    from discernment.policies.echo import echoed_rejection
    from discernment.policies.rejection import OpeningTrie, load_openings

    if policy.chat is None:
        return f"no rejection probability ({policy.no_rejection})"
    try:
        mass, _ = echoed_rejection(policy, prompt, OpeningTrie.from_openings(load_openings(), policy.chat))
    except DiscernmentError:
        raise
    except Exception as error:  # the reply is there
        return f"no rejection probability ({policy.endpoint.in_words(error)})"
    return f"rejection probability {mass:.3f}"


def _verdict(prompt: str, reply: str) -> str:
    from discernment.judges import KeywordJudge

    return KeywordJudge().judge(prompt, reply)
