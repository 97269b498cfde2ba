"""No error about a kubeconfig repeats what is secret in it: errors end in logs."""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path

import pytest

from ipvs_proxy.kube.client import ConnectError, connect

SECRET = "hush-hush-1234567890"
ENCODED = b64encode(SECRET.encode()).decode()
GOOD = f"""\
apiVersion: v1
kind: Config
current-context: c
clusters: [{{name: c, cluster: {{server: "https://127.0.0.1:1"}}}}]
contexts: [{{name: c, context: {{cluster: c, user: u}}}}]
users:
- name: u
  user:
    token: {SECRET}
"""
KEYS = f"    client-certificate-data: {ENCODED}\n    client-key-data: {ENCODED}\n"
PLUGIN = "exec: {apiVersion: client.authentication.k8s.io/v1, interactiveMode: Never, command: echo, args: ['%s']}"


@pytest.mark.parametrize(
    "text",
    [
        f"{GOOD}    client-key-data: {ENCODED}\n   bad: [\n",
        GOOD.replace(f"token: {SECRET}", f"token: {SECRET}: {SECRET}"),
        GOOD.replace("    token:", "\ttoken:"),
        GOOD + KEYS,
        GOOD + KEYS.replace(ENCODED, f"'{SECRET}!'"),
        GOOD.replace(f"  user:\n    token: {SECRET}", f"  user: {SECRET}"),
        GOOD.replace(f"token: {SECRET}", PLUGIN % SECRET),
    ],
    ids=["broken line", "colon", "tab", "no keys", "not base64", "user is text", "plugin prints garbage"],
)
async def test_error_about_a_kubeconfig_has_no_secret_in_it(text: str, tmp_path: Path) -> None:
    file = tmp_path / "kubeconfig"
    file.write_text(text)
    with pytest.raises(ConnectError) as caught:
        await connect(kubeconfig=str(file), master="")
    assert str(file) in str(caught.value)
    for secret in (SECRET, ENCODED):
        assert secret not in str(caught.value)
