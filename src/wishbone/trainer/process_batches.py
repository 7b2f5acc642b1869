"""Options of accelerate that deal out batches to several processes, where pairs do not survive them.

A batch of TRL's tensors has all chosen sequences first and all rejected ones after them. accelerate cuts tensors by
rows (`dispatch_batches`), so a process would get chosen sequences alone, and TRL's loss would take half of them for the
rejected ones, without a word. Where processes share out a step, all of them must read pairs in the order of one, which
accelerate's own sampler keeps and PyTorch's does not: it draws the order from the generator of the process.
"""

from __future__ import annotations

from accelerate import Accelerator

from wishbone.errors import RequestError
from wishbone.trainer.arguments import DPOConfig


def refuse_cut_batches(args: DPOConfig, accelerator: Accelerator, *, shared: bool, evaluates: bool) -> None:
    """Refuse options of `accelerator_config` that cut pairs apart or change their order between processes.

    Args:
        args: of the run.
        accelerator: has the options and the number of processes; with one nothing is refused.
        shared: whether processes share out the pairs of a step.
        evaluates: whether batches for evaluation are read, too.

    Raises:
        RequestError: with all that is wrong and what to write instead.
    """
    processes, loading = accelerator.num_processes, accelerator.dataloader_config
    if processes == 1:
        return
    wrong = []
    if loading.dispatch_batches:
        wrong.append(
            "dispatch_batches cuts batches by rows, of which a batch of pairs has all chosen ones first; leave it out, "
            "and each process reads its own pairs"
        )
    sizes = {"per_device_train_batch_size": args.per_device_train_batch_size}
    if evaluates:
        sizes["per_device_eval_batch_size"] = args.per_device_eval_batch_size
    for name, size in sizes.items():
        if loading.split_batches and size % processes:
            wrong.append(
                f"split_batches divides {name}, {size}, by the {processes} processes; give a multiple of {processes}, "
                "or leave split_batches out"
            )
    if shared and not loading.use_seedable_sampler and _random(args):
        wrong.append(
            "use_seedable_sampler=False draws another order than one process does, and shared_steps promises its "
            "result; leave it out, or set shared_steps=False"
        )
    if wrong:
        raise RequestError([f"accelerator_config in {processes} processes: {problem}" for problem in wrong])


def _random(args: DPOConfig) -> bool:
    """Whether pairs come in random order, which is the default; transformers before 5 had no other name for it."""
    return getattr(args, "train_sampling_strategy", "random") == "random"
