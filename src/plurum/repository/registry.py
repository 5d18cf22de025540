"""Store a model repository in an OCI registry, as one artifact with a blob per file.

The artifact is an image manifest (OCI Image Format Specification 1.1) whose layers have the files' relative paths as
titles, so `oras pull` gets the same files. A file that the registry has already is not sent again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from plurum.errors import OutputError, RepositoryError, ServerError, SettingsError, needs_extra
from plurum.files import atomic_folder, sha256_of
from plurum.repository.listing import check_exported, model_folders

if TYPE_CHECKING:
    from oras.container import Container
    from oras.provider import Registry

__all__ = ["pull_repository", "push_repository"]

_KIND = "application/vnd.plurum.repository.v1"
_TITLE = "org.opencontainers.image.title"
_TIMEOUT_S = 20
_FORM = "expected REGISTRY/NAME:TAG"


def push_repository(repository: Path, target: str, say: Callable[[str], None]) -> str:
    """Store a repository under `target`, REGISTRY/NAME:TAG, and return the digest of its manifest, `sha256:…`.

    Args:
        repository: Model repository, as it was exported.
        target: Where to store it.
        say: Receives the name of each file before it is sent.

    Raises:
        MissingExtraError: the extra `registry` is not installed.
        RepositoryError: `repository` is no model repository, or was changed since its export.
        ServerError: the registry does not respond, or refuses.
        SettingsError: `target` is not of this form.
    """
    model_folders(repository)
    check_exported(repository)
    registry, container = _connect(target)
    import oras.oci

    layers = []
    with _named_failures(target):
        for path in sorted(path for path in repository.rglob("*") if path.is_file()):
            name = path.relative_to(repository).as_posix()
            if "__pycache__" in name:
                continue
            say(name)
            layer = oras.oci.NewLayer(str(path), media_type="application/octet-stream", is_dir=False)
            layer["annotations"] = {_TITLE: name}
            if not registry.blob_exists(layer, container):
                _check(registry.upload_blob(str(path), container, layer))
            layers.append(layer)
        manifest: dict[str, Any] = oras.oci.NewManifest()
        config, _ = oras.oci.ManifestConfig()
        with oras.provider.temporary_empty_config() as empty:
            _check(registry.upload_blob(empty, container, config))
        manifest |= {"artifactType": _KIND, "layers": layers, "config": config}
        return str(_check(registry.upload_manifest(manifest, container)).headers["Docker-Content-Digest"])


def pull_repository(target: str, out: Path, say: Callable[[str], None]) -> None:
    """Fetch the repository that is stored under `target` into the folder `out`, which it replaces in one step.

    Args:
        target: Where the repository is stored, REGISTRY/NAME:TAG or REGISTRY/NAME@sha256:….
        out: Folder to write.
        say: Receives the name of each file before it is fetched.

    Raises:
        MissingExtraError: the extra `registry` is not installed.
        OutputError: `out` can't be written, or holds something other than a model repository.
        RepositoryError: what is stored is no model repository, or a file arrived damaged.
        ServerError: the registry does not respond, or refuses.
        SettingsError: `target` is not of this form.
    """
    if out.exists() and not (out / "ensemble.json").is_file() and (out.is_file() or any(out.iterdir())):
        raise OutputError(f"{out}: expected a new or empty folder, or a model repository to replace. Give another one.")
    registry, container = _connect(target)
    with _named_failures(target):
        manifest = registry.get_manifest(container)
    if manifest.get("artifactType") != _KIND:
        raise RepositoryError(f"{target}: expected a repository that `plurum push` stored, got {_kind_of(manifest)}.")
    with atomic_folder(out) as hidden:
        for layer in manifest["layers"]:
            name = str(layer.get("annotations", {}).get(_TITLE, ""))
            if not name or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise RepositoryError(f"{target}: expected relative paths, got {name!r}. Push the repository again.")
            say(name)
            with _named_failures(target):
                registry.download_blob(container, layer["digest"], str(hidden / name))
            if f"sha256:{sha256_of(hidden / name)}" != layer["digest"]:
                raise RepositoryError(f"{target}: {name} arrived damaged. Run the same command again.")
        for folder in model_folders(hidden):
            # An ensemble's version is an empty folder, which no blob stands for.
            (folder / "1").mkdir(exist_ok=True)
        check_exported(hidden)


def _connect(target: str) -> tuple[Registry, Container]:
    """Return a registry and a parsed target; credentials come from Docker's configuration.

    A registry on this machine has no TLS, as for Docker.
    """
    with needs_extra("registry", "oras"):
        from oras.provider import Registry
    # It logs what it also raises.
    logging.getLogger("oras.logger").setLevel(logging.CRITICAL)
    host, slash, name = target.partition("/")
    if not (slash and host and (":" in name or "@" in name)) or "://" in target:
        raise SettingsError(f"TARGET: {_FORM}, got {target}. For example: ghcr.io/clinic/clots:1")
    is_here = host.partition(":")[0] in {"localhost", "127.0.0.1"}
    try:
        registry = Registry(hostname=host, insecure=is_here)
        container = registry.get_container(target)
    except ValueError as error:
        raise SettingsError(f"TARGET: {_FORM}, got {target}: {error}") from error
    registry.auth.load_configs(container)
    with _named_failures(target):
        _authenticate(registry, f"{registry.prefix}://{host}/v2/")
    return registry, container


def _authenticate(registry: Registry, url: str) -> None:
    """Check once that the registry responds and knows the account; oras repeats a refused request for two minutes.

    Raises:
        requests.RequestException: the registry does not respond.
        ServerError: it refuses the account.
    """
    answer = registry.session.get(url, timeout=_TIMEOUT_S)
    if answer.status_code != HTTPStatus.UNAUTHORIZED:
        return
    account = getattr(registry.auth, "_basic_auth", None)
    if answer.headers.get("Www-Authenticate", "").lower().startswith("basic"):
        # oras only knows tokens.
        registry.session.headers["Authorization"] = f"Basic {account}"
        headers = {}
    else:
        headers, _ = registry.auth.authenticate_request(answer, {})
        # The next request needs a token of its own scope.
        registry.auth.token = None
    _check(registry.session.get(url, headers=headers, timeout=_TIMEOUT_S))


def _check(response: Any) -> Any:
    """Return a response after checking that the registry has accepted the request.

    Raises:
        ServerError: it has not.
    """
    if not response.ok:
        raise ServerError(f"status {response.status_code} {response.reason}")
    return response


@contextmanager
def _named_failures(target: str) -> Iterator[None]:
    """Name the registry in errors of the block."""
    import requests

    try:
        yield
    except requests.HTTPError as error:
        raise ServerError(f"{target}: the registry responds {error}") from error
    except (requests.RequestException, OSError) as error:
        reason = getattr(error.args[0] if error.args else error, "reason", error)
        raise ServerError(f"{target}: the registry does not respond: {reason}") from error
    except (ServerError, ValueError) as error:
        raise ServerError(f"{target}: the registry refuses: {error}. `docker login` stores credentials.") from error


def _kind_of(manifest: dict[str, Any]) -> str:
    return str(
        manifest.get("artifactType") or manifest.get("config", {}).get("mediaType") or "an artifact without a type"
    )
