"""timm's protocol for a classifier made of a stem, stages and a head, whatever these are."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from timm.layers import ClassifierHead
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from ..layers import UnitaryMethods
from ..training import unitary_weights
from .arguments import noted, pooling_of


class StagedClassifier(UnitaryMethods):
    """Base of the models: everything that timm asks of one, over ``stem``, ``stages`` and ``head``.

    A subclass calls :meth:`begin` with its arguments, sets ``stem`` and ``stages``, then calls :meth:`finish`, which
    makes the head. Each stage has a flag ``grad_checkpointing``.

    Attributes:
        feature_info: one entry a stage: channels, reduction of the resolution, name of the module.
        num_features: channels of the last stage.
        head_hidden_size: of what the classifier sees.
    """

    if TYPE_CHECKING:  # at run time TorchScript would read them, and know none of these types
        stem: nn.Module
        stages: nn.Sequential
        head: ClassifierHead

    __jit_unused_properties__: ClassVar[list[str]] = ["_model_args"]
    head_layer: ClassVar[type[ClassifierHead]] = ClassifierHead
    poolings: ClassVar[tuple[str, ...]] = ()  # that it knows beside timm's

    @property
    def _model_args(self) -> dict[str, Any]:
        return self.__dict__.get("arguments", {})

    @_model_args.setter
    def _model_args(self, arguments: Mapping[str, Any]) -> None:
        self.__dict__["arguments"] = noted(arguments)

    def begin(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Notes the arguments of a model where timm looks for them; see Note [What a configuration holds].

        Returns:
            Those that say where parameters are made, device and dtype.
        """
        self._model_args = arguments
        names = ("num_classes", "in_chans", "drop_rate")
        self.num_classes, self.in_chans, self.drop_rate = (arguments[name] for name in names)
        return {"device": arguments["device"], "dtype": arguments["dtype"]}

    def finish(self, channels: Sequence[int], reductions: Sequence[int], **dd: Any) -> None:
        """Makes the head, and notes what the stages put out.

        Args:
            channels: of the output of each stage.
            reductions: of the resolution, after each stage.
            dd: device and dtype of the head.
        """
        pool = pooling_of(self._model_args.get("global_pool"), *self.poolings)
        self.head = self.head_layer(channels[-1], self.num_classes, pool, drop_rate=self.drop_rate, **dd)
        self.feature_info: list[dict[str, Any]] = [
            {"num_chs": c, "reduction": r, "module": f"stages.{i}"}
            for i, (c, r) in enumerate(zip(channels, reductions, strict=True))
        ]
        self.num_features = channels[-1]
        self.head_hidden_size = self.head.num_features

    def forward_features(self, x: Tensor) -> Tensor:
        """The features before pooling ``(b, num_features, h / reduction, w / reduction)``."""
        return self.stages(self.stem(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pools and classifies features; ``pre_logits`` leaves the classifier out."""
        return self.head(x, pre_logits=True) if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The outputs of stages, with those of the last one.

        Args:
            x: images.
            indices: stages to return; of an integer the last so many; None for all.
            norm: without effect, as there is no norm after the stages.
            stop_early: leave out the stages behind the last one wanted.
            output_fmt: "NCHW".
            intermediates_only: return the list alone.

        Returns:
            Final features and the list of intermediate ones, or that list alone.

        Raises:
            ValueError: for another format.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"expected output_fmt='NCHW', got {output_fmt!r}")
        take, last = feature_take_indices(len(self.stages), indices)
        x, intermediates = self.stem(x), []
        for i, stage in enumerate(self.stages[: last + 1] if stop_early else self.stages):
            x = stage(x)
            if i in take:
                intermediates.append(x)
        return intermediates if intermediates_only else (x, intermediates)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Removes the stages behind the last one wanted, and with them (or with ``prune_head``) the classifier.

        Returns:
            The indices of the stages asked for.
        """
        take, last = feature_take_indices(len(self.stages), indices)
        shorter = last + 1 < len(self.stages)
        self.stages = self.stages[: last + 1]
        if shorter:
            self.num_features = self.feature_info[last]["num_chs"]
            self.head.in_features = self.num_features
        if prune_head or shorter:
            self.reset_classifier(0, "")
        return take

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, object]:
        """Patterns by which parameters are grouped into the stem and stages, or (not ``coarse``) blocks."""
        stage = (r"^stages\.(\d+)", None)
        blocks = [(r"^stages\.(\d+)\.transition", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None), stage]
        return {"stem": r"^stem", "blocks": [stage] if coarse else blocks}

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of the unitary weights, which a decay would take off the manifold."""
        return {weight.name for weight in unitary_weights(self)}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether the backward of the blocks computes their activations anew instead of keeping them."""
        for stage in self.stages:
            stage.grad_checkpointing = enable  # type: ignore[assignment]  # torch promises tensors and modules alone

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The linear classifier."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier, or none for 0 classes; ``global_pool`` None keeps the pooling."""
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)
        self.head_hidden_size = self.head.num_features
