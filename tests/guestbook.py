"""Local images in place of those of the guestbook: the same parts, ports and ways between them, of busybox."""

import pathlib

from testbed import images

MANIFESTS = pathlib.Path(__file__).parent.parent / "docs" / "examples" / "guestbook.yaml"

_STORE = "httpd -f -p 6379 -h /srv"
_COMMANDS = {
    "guestbook-redis-leader:1": "mkdir -p /srv; echo -n 'guest was here' > /srv/index.html; " + _STORE,
    "guestbook-redis-follower:1": (
        "mkdir -p /srv/cgi-bin; printf '#!/bin/sh\\necho Content-type: text/plain; echo; wget -qO- http://redis-leader:6379/\\n'"
        " > /srv/cgi-bin/page; chmod +x /srv/cgi-bin/page; " + _STORE
    ),
    "guestbook-frontend:1": (
        "mkdir -p /srv/cgi-bin; printf '#!/bin/sh\\necho Content-type: text/plain; echo; timeout 3 wget -qO- "
        "http://redis-follower:6379/cgi-bin/page\\n' > /srv/cgi-bin/page; chmod +x /srv/cgi-bin/page; httpd -f -p 80 -h /srv"
    ),
}  # fmt: skip


def archive():
    """Return them as an archive that engines load."""
    return images.archive([(tag, ["sh", "-c", script]) for tag, script in _COMMANDS.items()])


def create(cloud, bay):
    """Have its services and controllers made in a bay."""
    for text in MANIFESTS.read_text().split("\n---\n"):
        kind = "services" if "kind: Service" in text else "rcs"
        status, made = cloud.request("POST", f"/v1/{kind}?wait=30", {"bay_uuid": bay, "manifest": text})
        assert status in (201, 202), made
