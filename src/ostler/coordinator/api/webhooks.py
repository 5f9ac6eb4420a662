"""Endpoints for webhooks."""

import base64
import secrets

from msgspec.structs import replace

from ostler.coordinator.api.calls import Call
from ostler.coordinator.operations import webhooks as ops
from ostler.coordinator.webhooks import PURPOSE, DeliveryFailed, Parcel, check_url
from ostler.protocol import messages as m
from ostler.protocol.codec import encode


async def add_webhook(call: Call) -> m.WebhookView:
    """Its secret is in this answer and, sealed, in the store."""
    request = await call.json(m.WebhookRequest)
    check_url(request.url, allow_private=call.services.config.webhooks.allow_private)
    webhook_id, secret = f"w-{_word(5)}", f"ostler_webhook_{_word(20)}"
    sealed = call.services.sealer.seal(PURPOSE, [webhook_id], secret.encode())
    view = await call.write(ops.add_webhook, webhook_id, call.owner, request, sealed)
    return replace(view, secret=secret)


def _word(size: int) -> str:
    return base64.b32encode(secrets.token_bytes(size)).decode().lower()


async def list_webhooks(call: Call) -> m.WebhookPage:
    """Without their secrets."""
    return await call.read(ops.list_webhooks, call.query(m.PageQuery), call.owner)


async def remove_webhook(call: Call) -> m.WebhookView:
    """Nothing more is delivered; what is under way may still arrive."""
    return await call.write(ops.remove_webhook, call.path["webhook_id"], call.owner)


async def enable_webhook(call: Call) -> m.WebhookView:
    """As if nothing had failed."""
    return await call.write(ops.enable_webhook, call.path["webhook_id"], call.owner)


async def test_webhook(call: Call) -> m.WebhookTest:
    """A delivery without events; it changes nothing, but somebody had the coordinator call a stranger, so it is in the audit log."""
    webhook_id = call.path["webhook_id"]
    view = await call.write(ops.show_webhook, webhook_id, call.owner)
    sealed = await call.read(ops.sealed_secret, webhook_id)
    secret = call.services.sealer.open(PURPOSE, [webhook_id], sealed).decode()
    body = encode(m.WebhookDelivery(webhook_id=webhook_id, events=()))
    try:
        status = await call.services.courier.deliver(Parcel(url=view.url, secret=secret, webhook_id=webhook_id, body=body))
    except DeliveryFailed as exc:
        return m.WebhookTest(ok=False, error=str(exc))
    return m.WebhookTest(ok=True, status=status)
