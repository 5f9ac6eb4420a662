"""Endpoints for tokens."""

from ostler.coordinator.api.calls import Call
from ostler.coordinator.operations import tokens as ops
from ostler.protocol import messages as m


async def create_token(call: Call) -> m.TokenView:
    """Shown in this answer and never again."""
    return await call.services.store.write(ops.create_token, await call.json(m.TokenRequest))


async def list_tokens(call: Call) -> m.TokenPage:
    """Without their secrets."""
    return await call.services.store.read(ops.list_tokens, call.query(m.PageQuery))


async def revoke_token(call: Call) -> m.TokenView:
    """Useless from the moment of the answer on, in this process's memory too."""
    view = await call.services.store.write(ops.revoke_token, call.path["token_id"])
    call.services.door.forget(call.path["token_id"])
    return view
