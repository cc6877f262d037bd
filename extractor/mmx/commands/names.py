"""Names that a shell completes."""

from __future__ import annotations

import click

from mmbase.completion import completing


def _encoders(ctx: click.Context) -> list[str]:
    from mmx.encoders import describe

    return [one.name for one in describe(ctx.params.get("modality"))]


encoder_names = completing(_encoders)
