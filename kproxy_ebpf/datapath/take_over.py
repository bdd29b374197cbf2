"""An upgrade: the programs and maps of one generation take the place of those in force, and no packet notices.

Before it, `generations.generation.ensure` has built the new generation beside the one in force. Maps of equal shape and
layout are part of both. Service tables of another size or layout have been copied by field name; where that was
impossible the generation is not `ready`, and the caller fills its tables first. The old programs serve until then.

The upgrade itself is `take_over`, four steps:

1. **Copy the flows.** Flows and affinity that the two generations do not share are copied. From then on the new
   programs have a predecessor: by the prog array of that name they hand packets of no known flow to the old programs,
   for what the old programs learn until they are swapped, they alone know.
2. **Activate.** The link `current` in bpffs points at the new generation. A daemon that starts now goes on from here.
3. **Swap.** On each link and at the cgroup, the new programs take the place of the old ones. A packet meets one
   generation or the other, never both and never none.
4. **Retire.** What the old programs learned meanwhile is copied, the predecessor is taken away, and the old pins are
   removed. Flows that can't be copied stay with the programs that made them: that generation remains the predecessor
   until the next upgrade has to keep another, or for as long as a flow can live.

A daemon that is killed between any two steps leaves a datapath that serves everything, and the next start repeats the
same steps. docs/decisions/0010 tells why it is done so, and what remains.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kproxy_ebpf.datapath.attach.tc import Attacher
from kproxy_ebpf.datapath.generations.generation import Generation


def take_over(generation: Generation, attachers: Sequence[Attacher], swap_sockets: Callable[[], None]) -> None:
    """Make `generation` the one in force, on every link; remove all others. Raises OSError.

    `attachers` swap in the order in which replies travel: a reply is known at a link before it comes there.
    `swap_sockets` brings the programs at the cgroup up to date, if there are any.
    """
    for attacher in attachers:
        attacher.prune()
    generation.copy_flows()
    generation.activate()
    for attacher in attachers:
        attacher.swap(generation)
    swap_sockets()
    generation.retire_others()
