"""Which prompts belong together and fall together: matched pairs, and all of one wording frame."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from discernment.prompts.prompt import Prompt


def prompt_clusters(prompts: Sequence[Prompt]) -> npt.NDArray[np.int64]:
    """Which prompts belong together: a prompt, its matched partner, all of its source with its wording frame.

    Returns:
        `[n]`, a number for each cluster.
    """
    links = partner_links(prompts)
    first_of: dict[tuple[str, str], int] = {}
    links += [
        (n, first_of.setdefault((p.source, p.frame), n)) for n, p in enumerate(prompts) if p.frame is not None
    ]
    return linked(links, len(prompts))


def partner_links(prompts: Sequence[Prompt]) -> list[tuple[int, int]]:
    """Row numbers of each prompt whose partner is among the prompts, and of that partner."""
    position = {p.id: n for n, p in enumerate(prompts)}
    return [(n, position[p.partner]) for n, p in enumerate(prompts) if p.partner in position]


def linked(links: Sequence[tuple[int, int]], n: int) -> npt.NDArray[np.int64]:
    """Which of n things hang together over links between two of them: a number for each cluster, `[n]`."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rows, columns = np.array(links, dtype=np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(links)), (rows, columns)), shape=(n, n))
    return np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64)
