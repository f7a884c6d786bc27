"""DeepSpeed: its configuration from a recipe, its engine, and its partitioned state.

DeepSpeed's own checkpoints are pickles (`torch.load(..., weights_only=False)` in 0.19), tied to the
number of ranks and the ZeRO stage. A run saves `MasterState` instead: the whole float32 value and
two moments of each trained parameter, at any stage. Everything that depends on DeepSpeed's
internals is in this file.
"""

import itertools
import logging
import os
from collections import defaultdict
from collections.abc import Collection, Iterator
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

import torch
from torch import nn

from alignshared import InputError
from aligntrain.recipes.schema import Recipe
from aligntrain.train.phases import Part, group_part, parameter_groups

if TYPE_CHECKING:
    from aligntrain.model.modeling import AlignGPTForConditionalGeneration, AlignGPTOutput

State = Literal["master", "exp_avg", "exp_avg_sq"]
STATES: tuple[State, ...] = get_args(State)
"""States of each trained parameter: its float32 value and AdamW's two moments, by torch's names."""

_WITHOUT_COMPILER = "TORCHDYNAMO_DISABLE"
_LARGEST_BUCKET = 500_000_000
_SCALER_FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


class Engine(Protocol):
    """Interface used of a `deepspeed.DeepSpeedEngine`, which is untyped."""

    module: "AlignGPTForConditionalGeneration"
    optimizer: Any
    device: torch.device
    enable_backward_allreduce: bool

    def __call__(self, **inputs: Any) -> "AlignGPTOutput": ...
    def backward(self, loss: torch.Tensor, *, scale_wrt_gas: bool = True) -> Any: ...
    def step(self) -> Any: ...
    def train(self) -> Any: ...
    def eval(self) -> Any: ...
    def fp16_enabled(self) -> bool: ...
    def bfloat16_enabled(self) -> bool: ...
    def zero_optimization_stage(self) -> int: ...
    def get_global_grad_norm(self) -> torch.Tensor | float | None: ...
    def was_step_applied(self) -> bool: ...


def start_process(device: torch.device) -> None:
    """Join the other ranks that the launcher's environment names."""
    choose_accelerator()
    import deepspeed
    import deepspeed.ops

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # Nothing is compiled: DeepSpeed would build an operator for messages between processes on a
    # CPU, and probe the machine for its other operators, which are not used.
    operators: Any = deepspeed.ops
    operators.__compatible_ops__ = defaultdict(bool)  # False for each
    _import_muon_uncompiled()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    deepspeed.init_distributed(backend, auto_mpi_discovery=False, verbose=False)


def _import_muon_uncompiled() -> None:
    """Import DeepSpeed's Muon optimizer, unused here, without torch's compiler.

    DeepSpeed imports it to check the optimizer that it is given. Its functions are decorated to be
    compiled, which would load the compiler in each process, for 1.5 s.
    """
    kept = os.environ.get(_WITHOUT_COMPILER)
    os.environ[_WITHOUT_COMPILER] = "1"
    try:
        with suppress(ImportError):  # a release without it
            import_module("deepspeed.runtime.zero.muon.original_muon")
    finally:
        del os.environ[_WITHOUT_COMPILER]
        if kept is not None:
            os.environ[_WITHOUT_COMPILER] = kept


def stop_process() -> None:
    """Leave the other ranks, if `start_process` joined them."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def choose_accelerator() -> None:
    """Set DeepSpeed's device before its first import; it warns when it has to guess."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")


def on_gpu() -> bool:
    """Return whether the ranks use GPUs."""
    return torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu"


def deepspeed_config(
    recipe: Recipe, *, ranks: int, trainable: int, on_gpu: bool, micro_batches: int
) -> dict[str, Any]:
    """Return the configuration of `deepspeed.initialize` for `recipe` on `ranks` processes.

    No communication buffer is larger than the `trainable` parameters. Each rank accumulates the
    gradients of `micro_batches` in a step.
    """
    config: dict[str, Any] = {
        "train_batch_size": recipe.batch.micro_size * micro_batches * ranks,
        "train_micro_batch_size_per_gpu": recipe.batch.micro_size,
        "gradient_accumulation_steps": micro_batches,
        "gradient_clipping": recipe.optimizer.grad_clip,
        "zero_optimization": _zero_section(recipe, trainable, on_gpu),
        "zero_force_ds_cpu_optimizer": False,  # it would be compiled
        "steps_per_print": 2**31,
    }
    if recipe.precision != "fp32":
        config[recipe.precision] = {"enabled": True}
        if recipe.zero_stage >= 2:
            # In 16 bits, small gradients would be lost when micro-batches are added up.
            config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config


def _zero_section(recipe: Recipe, trainable: int, on_gpu: bool) -> dict[str, Any]:
    if recipe.zero_stage == 0:
        return {"stage": 0}
    bucket = min(_LARGEST_BUCKET, max(trainable, 1))
    section: dict[str, Any] = {
        "stage": recipe.zero_stage,
        "overlap_comm": on_gpu,
        "contiguous_gradients": True,
        "reduce_bucket_size": bucket,
    }
    host = {"device": "cpu", "pin_memory": on_gpu}
    if recipe.offload != "none":
        section["offload_optimizer"] = host
    if recipe.offload == "all":
        section["offload_param"] = host
    return section


def build_engine(model: nn.Module, recipe: Recipe, *, micro_batches: int) -> Engine:
    """Return the DeepSpeed engine that trains the parameters of `model` that require gradients.

    The optimizer is torch's fused AdamW at every stage: nothing to compile, on CPU as on GPU.
    Each group's `lr` is kept as its `highest_lr`.

    Raises:
        InputError: the precision is not available here.
    """
    import deepspeed

    if recipe.precision == "fp16" and not on_gpu():
        raise InputError("precision fp16 needs a GPU and there is none here; set it to fp32.")
    groups = parameter_groups(model, recipe.optimizer)
    for group in groups:
        group["highest_lr"] = group["lr"]
    settings = recipe.optimizer
    optimizer = torch.optim.AdamW(
        groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=True
    )
    trainable = sum(p.numel() for group in groups for p in group["params"])
    config = deepspeed_config(
        recipe,
        ranks=torch.distributed.get_world_size(),
        trainable=trainable,
        on_gpu=on_gpu(),
        micro_batches=micro_batches,
    )
    engine: Any = deepspeed.initialize(
        model=model, optimizer=optimizer, config=config, dist_init_required=False
    )[0]
    if is_plain(engine) and torch.distributed.get_world_size() == 1:
        # With nothing to average, copying every gradient to a bucket and back would take an
        # eighth of a step of SmolLM2-135M.
        engine.enable_backward_allreduce = False
    # DeepSpeed 0.19 links parameters to their moments after the first group's first step, when the
    # other groups have none yet, and does not look again. So all moments are made here.
    MasterState(engine).begin(0)
    return engine


def is_plain(engine: Engine) -> bool:
    """Return whether gradients and optimizer are torch's own: without ZeRO, in fp32."""
    sixteen = engine.fp16_enabled() or engine.bfloat16_enabled()
    return not sixteen and engine.zero_optimization_stage() == 0


def set_rates(engine: Engine, factor: float, *, resting: Collection[Part] = ()) -> dict[str, float]:
    """Set each group's learning rate to `factor` of its highest; return the rates by group name.

    The rate of `resting` parts is 0, at which AdamW leaves them as they are, to the bit; without
    gradients their moments alone would go on changing them.
    """
    for group in engine.optimizer.param_groups:
        group["lr"] = 0.0 if group_part(group) in resting else group["highest_lr"] * factor
    return {group["name"]: group["lr"] for group in engine.optimizer.param_groups}


def full_state(model: nn.Module, names: set[str] | None = None) -> dict[str, torch.Tensor]:
    """Return the whole tensors of `model` by name, on the CPU of rank 0; all ranks call it.

    Other ranks get none. `names` limits it to these parameters. Tied parameters come under their
    first name.
    """
    import deepspeed

    first = torch.distributed.get_rank() == 0
    state: dict[str, torch.Tensor] = {}
    persistent = model.state_dict(keep_vars=True).keys()
    buffers = ((name, buffer) for name, buffer in model.named_buffers() if name in persistent)
    for name, tensor in itertools.chain(model.named_parameters(), buffers):
        if names is not None and name not in names:
            continue
        parts = [tensor] if hasattr(tensor, "ds_id") else []  # partitioned by ZeRO-3
        with deepspeed.zero.GatheredParameters(parts, enabled=bool(parts)):
            if first:
                state[name] = tensor.detach().to("cpu", copy=True)
    return state


def _set_own_part(parameter: nn.Parameter, kind: State, value: torch.Tensor) -> None:
    """Under ZeRO-3, set this rank's part of `parameter` from the whole `value`."""
    from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

    partition: Any = parameter
    # All parts have one size, so the last ones may go beyond the end of `value`, where DeepSpeed's
    # own setter of whole values fails.
    size = partition.ds_tensor.numel()
    begin = torch.distributed.get_rank() * size
    part = value.new_zeros(size)
    own = value.flatten()[begin : begin + size]
    part[: len(own)] = own
    if kind == "master":
        safe_set_local_fp32_param(parameter, part)
    else:
        safe_set_local_optimizer_state(parameter, part, kind)


class MasterState:
    """The float32 values and moments of the trained parameters of `engine`, whole.

    Getting gathers from all ranks, so all ranks get the same parameters in the same order. Each
    rank sets its own part; the model must hold the same values already, rounded to its own type.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._optimizer: Any = engine.optimizer
        self.stage: int = engine.zero_optimization_stage()
        self._trained = [(n, p) for n, p in engine.module.named_parameters() if p.requires_grad]
        self._own: dict[int, torch.Tensor] = self._float32_copies() if self.stage == 0 else {}

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield name and parameter of everything trained, in the same order on all ranks."""
        yield from self._trained

    @property
    def steps(self) -> int:
        """Number of optimizer steps made."""
        states = list(self._base.state.values())
        return int(states[0]["step"].item()) if states else 0

    def get(self, parameter: nn.Parameter, kind: State) -> torch.Tensor:
        """Return the whole `kind` of `parameter` (its shape, float32), on its device."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        if self.stage == 0:
            own = self._own[id(parameter)]
            return (own if kind == "master" else self._base.state[own][kind]).detach()
        spread: Any = (
            safe_get_full_fp32_param(parameter)
            if kind == "master"
            else safe_get_full_optimizer_state(parameter, kind)
        )
        return spread

    def set(self, parameter: nn.Parameter, kind: State, value: torch.Tensor) -> None:
        """Set the whole `value`, as `get` returned it; call `begin` first."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        if self.stage == 0:
            own = self._own[id(parameter)]
            target = own if kind == "master" else self._base.state[own][kind]
            with torch.no_grad():
                target.copy_(value)
        elif self.stage == 3:
            _set_own_part(parameter, kind, value)
        elif kind == "master":
            safe_set_full_fp32_param(parameter, value)
        else:
            safe_set_full_optimizer_state(parameter, value, kind)

    def begin(self, steps: int) -> None:
        """Set the optimizer's state to `steps` steps, with moments of 0."""
        if self.stage == 3:
            updated = list(self._optimizer.fp32_partitioned_groups_flat)
        else:
            updated = [tensor for group in self._base.param_groups for tensor in group["params"]]
        for flat in updated:
            state = self._base.state[flat]
            if not state:
                state["step"] = torch.zeros((), device=flat.device)
                state |= {moment: torch.zeros_like(flat) for moment in STATES[1:]}
            state["step"].fill_(float(steps))
        if self.stage in (1, 2):
            self._optimizer._lazy_init_hp_params_optimizer_state()

    def scaler(self) -> dict[str, float]:
        """Return the state of fp16's loss scale; empty in other precisions."""
        state = {field: getattr(self._scaler(), field, None) for field in _SCALER_FIELDS}
        return {field: value for field, value in state.items() if value is not None}

    def set_scaler(self, state: dict[str, float]) -> None:
        """Restore the state returned by `scaler`."""
        scaler = self._scaler()
        for field, value in state.items():
            if hasattr(scaler, field):
                setattr(scaler, field, value)

    @property
    def _base(self) -> torch.optim.Optimizer:
        """Torch's optimizer, wrapped by DeepSpeed's with ZeRO or in 16 bits."""
        return getattr(self._optimizer, "optimizer", self._optimizer)

    def _float32_copies(self) -> dict[int, torch.Tensor]:
        """Return, without ZeRO, each parameter's float32 copy, or itself in fp32."""
        if hasattr(self._optimizer, "fp32_groups"):
            low, high = self._optimizer.fp16_groups, self._optimizer.fp32_groups
            groups = zip(low, high, strict=True)
            pairs = (pair for group in groups for pair in zip(*group, strict=True))
            return {id(parameter): own for parameter, own in pairs}
        return {id(parameter): parameter for _, parameter in self._trained}

    def _scaler(self) -> Any:
        for name in ("loss_scaler", "loss_scale_config"):
            if self._engine.fp16_enabled() and hasattr(self._optimizer, name):
                return getattr(self._optimizer, name)
        return None
