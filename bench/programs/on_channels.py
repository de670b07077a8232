"""Django Channels on uvicorn, its in-memory layer: `group_send`, a consumer for each client."""

import json

import django
from django.conf import settings

settings.configure(
    ROOT_URLCONF=__name__,
    SECRET_KEY="of a benchmark on loopback",
    ALLOWED_HOSTS=["*"],
    CHANNEL_LAYERS={
        "default": {
            "BACKEND": "channels.layers.InMemoryChannelLayer",
            "CONFIG": {"capacity": 10000},
        }
    },
)
django.setup()

from channels.generic.websocket import AsyncWebsocketConsumer  # noqa: E402
from channels.layers import get_channel_layer  # noqa: E402
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from django.core.asgi import get_asgi_application  # noqa: E402
from django.http import HttpResponse  # noqa: E402
from django.urls import path  # noqa: E402
from serving import serve  # noqa: E402


class Client(AsyncWebsocketConsumer):
    """One client, in the group of all."""

    groups = ("all",)

    async def delta(self, event):
        """Send what the group was sent."""
        await self.send(text_data=json.dumps(event["message"], separators=(",", ":")))


async def publish(request):
    """Send each line of the body to the group."""
    for line in request.body.splitlines():
        message = {"type": "delta", "message": json.loads(line)}
        await get_channel_layer().group_send("all", message)
    return HttpResponse()


urlpatterns = [path("publish", publish)]
sockets = URLRouter([path("ws", Client.as_asgi())])
serve(ProtocolTypeRouter({"http": get_asgi_application(), "websocket": sockets}), "channels")
