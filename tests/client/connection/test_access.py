"""Through a gateway with a key and a certificate, and to the model of one's choice."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image
from tritonclient.grpc import service_pb2 as pb

from plurum.client import EnsembleClient, Failure, Prediction, Tls
from plurum.errors import ServerError, SettingsError
from plurum.export import ExportSettings, repository_from_run
from plurum.run import Run
from plurum.serving import Server, ServerSettings
from tests.serving.certificates import self_signed
from tests.serving.gateway.gateways import gateway, wait_until_ready

pytestmark = pytest.mark.triton
KEY = "correct-horse-battery-staple"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return self_signed(tmp_path_factory.mktemp("tls"))


def test_gateway_with_a_key_over_https(
    served: Server, run: Run, certificate: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"{KEY}\n")
    keys.chmod(0o600)
    images = np.array(run.pixels()[:8])
    cert, key = certificate
    options = ["--keys", keys, "--tls-cert", cert, "--tls-key", key]
    with gateway(served.urls.grpc, *map(str, options)) as one, EnsembleClient(served.urls.grpc) as direct:
        wait_until_ready(one)
        with EnsembleClient(one.http, api_key=KEY, tls=Tls(ca_file=cert)) as client:
            assert client.served.classes == direct.served.classes
            answers, expected = client.predict(images), direct.predict(images)
        assert [answer.label for answer in answers] == [answer.label for answer in expected]
        with EnsembleClient(one.http, tls=Tls(ca_file=cert)) as client, pytest.raises(ServerError, match="PLURUM_API"):
            client.predict(images)
        monkeypatch.setenv("PLURUM_API_KEY", KEY)
        with EnsembleClient(one.http, tls=Tls(ca_file=cert)) as client:
            assert client.predict(images[:1])
        # Who it is that answers there is not known to the system.
        with EnsembleClient(one.http) as client, pytest.raises(ServerError, match="no HTTP server responds"):
            client.predict(images)


class Described(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Says of every model that it is none of ours, to those with a key; real TLS, no Triton behind it."""

    def service(self, details: Any) -> Any:
        def answer(_: bytes, context: Any) -> bytes:
            if dict(details.invocation_metadata).get("authorization") != f"Bearer {KEY}":
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "no key")
            return pb.ModelMetadataResponse(name="ensemble").SerializeToString()  # type: ignore[no-any-return]

        return grpc.unary_unary_rpc_method_handler(answer)


@pytest.fixture
def secure(certificate: tuple[Path, Path]) -> Iterator[str]:
    cert, key = certificate
    server = grpc.server(futures.ThreadPoolExecutor(2), handlers=[Described()])
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), cert.read_bytes())])
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    yield f"grpcs://127.0.0.1:{port}"
    server.stop(0).wait()


def test_grpc_over_tls_with_a_key(secure: str, certificate: tuple[Path, Path]) -> None:
    tls = Tls(ca_file=certificate[0])
    for key, message in ((KEY, "is not a Triton server"), ("another", "denies access: no key")):
        with EnsembleClient(secure, api_key=key, tls=tls) as client, pytest.raises(ServerError, match=message):
            client.predict([b"image"])
    with EnsembleClient(secure, api_key=KEY) as client, pytest.raises(ServerError, match="no gRPC server responds"):
        client.predict([b"image"])


def test_invalid_tls_files_give_one_line(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    for scheme in ("https", "grpcs"):
        for name in ("ca.pem", "nowhere.pem"):
            with pytest.raises(SettingsError, match=r"the TLS files can't be used: .*Give PEM files"):
                EnsembleClient(f"{scheme}://127.0.0.1", tls=Tls(ca_file=tmp_path / name))
    with pytest.raises(SettingsError, match="expected both or neither"):
        Tls(cert_file="cert.pem")


@pytest.mark.slow
def test_fused_model_can_be_chosen(run: Run, tmp_path: Path) -> None:
    repository_from_run(run, tmp_path / "repository", ExportSettings(max_batch_size=8, form="chain", fused=True))
    images = np.array(run.pixels()[:8])
    with Server(tmp_path / "repository", ServerSettings(http_port=0, grpc_port=0, metrics_port=0)) as server:
        for url in (server.urls.grpc, server.urls.http):
            with EnsembleClient(url, model="ensemble_fused") as fused, EnsembleClient(url) as usual:
                assert not fused.served.takes_encoded
                assert fused.served.pixels_shape == usual.served.pixels_shape == images.shape[1:]
                answers, expected = fused.predict([images[0], Image.fromarray(images[1])]), usual.predict(images[:2])
                for answer, wanted in zip(answers, expected, strict=True):
                    assert answer.label == wanted.label
                    assert list(answer.probabilities.values()) == pytest.approx(
                        list(wanted.probabilities.values()), abs=1e-4
                    )
                first, second, third = fused.stream([b"a PNG, say", images[0][:9], images[0]])
                assert isinstance(first, Failure)
                assert first.reason.startswith("expected uint8 pixels [32, 32, 3], got a bytes")
                assert isinstance(second, Failure)
                assert isinstance(third, Prediction)
            with (
                EnsembleClient(url, model="regnetx_002") as client,
                pytest.raises(ServerError, match="was not exported by Plurum"),
            ):
                client.predict(images)
            with (
                EnsembleClient(url, model="nothing") as client,
                pytest.raises(ServerError, match="unknown model 'nothing'"),
            ):
                client.predict(images)
