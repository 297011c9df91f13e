"""Issues the cluster's own certificates and the kubeconfigs that carry them, with the ``openssl`` command."""

import base64
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from devcluster import configuration
from devcluster.errors import DevclusterError
from devcluster.settings import Settings, Shape

DAYS = "365"
AUTHORITY = "ca"


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """One key pair, signed by the cluster's authority."""

    file: str
    common_name: str
    organisation: str = ""
    """Kubernetes reads it as the group of the user."""
    server_names: tuple[str, ...] = ()
    """Empty for a certificate that only proves who a client is."""

    @property
    def subject(self) -> str:
        return (f"/O={self.organisation}" if self.organisation else "") + f"/CN={self.common_name}"

    @property
    def extensions(self) -> str:
        if not self.server_names:
            return "extendedKeyUsage=clientAuth\n"
        return f"extendedKeyUsage=serverAuth,clientAuth\nsubjectAltName={','.join(self.server_names)}\n"


def wanted(settings: Settings) -> tuple[Certificate, ...]:
    """The certificates of a cluster: one identity for each component, so that RBAC means something."""
    node = settings.node_name
    service = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local")
    server = (
        *(f"DNS:{name}" for name in (*service, "localhost")),
        "IP:127.0.0.1",
        f"IP:{settings.api_service}",
        f"IP:{settings.gateway}",
    )
    control_plane = (
        Certificate(file="apiserver", common_name="kube-apiserver", server_names=server),
        Certificate(file="admin", common_name="admin", organisation="system:masters"),
        Certificate(file="controller-manager", common_name="system:kube-controller-manager"),
    )
    if settings.shape is Shape.CONTROL_PLANE:
        return control_plane
    return (
        *control_plane,
        Certificate(file="apiserver-kubelet-client", common_name=configuration.KUBELET_CLIENT),
        Certificate(file="scheduler", common_name="system:kube-scheduler"),
        Certificate(file="kube-proxy", common_name="system:kube-proxy"),
        Certificate(file="coredns", common_name=configuration.DNS_USER),
        Certificate(file="dra", common_name=configuration.DEVICE_DRIVER_USER),
        Certificate(
            file="kubelet",
            common_name=f"system:node:{node}",
            organisation="system:nodes",
            server_names=(f"DNS:{node}", f"IP:{settings.gateway}"),
        ),
    )


def issue(settings: Settings, *, api_address: str) -> None:
    """Write all keys, certificates and kubeconfigs, once; a cluster keeps them until `down`.

    Args:
        api_address: URL of the API server, for the kubeconfigs.

    Raises:
        DevclusterError: ``openssl`` failed; the message has its words.
    """
    if not settings.certificates.exists():
        # Made aside and renamed: an `up` that dies half way leaves nothing that looks complete.
        settings.state.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=settings.state, prefix=".pki-"))
        try:
            _make_authority(fresh)
            _make_account_keys(fresh)
            for certificate in wanted(settings):
                _sign(fresh, certificate)
            fresh.rename(settings.certificates)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    for certificate in wanted(settings):
        if not certificate.file.startswith("apiserver"):
            _write_kubeconfig(settings, certificate, api_address=api_address)


def _make_authority(folder: Path) -> None:
    names = ["-keyout", str(folder / f"{AUTHORITY}.key"), "-out", str(folder / f"{AUTHORITY}.crt")]
    constraint = ["-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign"]
    _openssl(["req", "-x509", *_NEW_KEY, *names, "-days", DAYS, "-subj", "/CN=tlt-devcluster", *constraint])


def _make_account_keys(folder: Path) -> None:
    _openssl(["genrsa", "-out", str(folder / "service-account.key"), "2048"])
    key, public = str(folder / "service-account.key"), str(folder / "service-account.pub")
    _openssl(["rsa", "-in", key, "-pubout", "-out", public])


def _sign(folder: Path, certificate: Certificate) -> None:
    base = folder / certificate.file
    request, extensions = base.with_suffix(".csr"), base.with_suffix(".ext")
    extensions.write_text(certificate.extensions)
    # Request and signature are two steps because OpenSSL before 3.0 knows no single one.
    _openssl(["req", *_NEW_KEY, "-keyout", f"{base}.key", "-out", str(request), "-subj", certificate.subject])
    authority = ["-CA", str(folder / f"{AUTHORITY}.crt"), "-CAkey", str(folder / f"{AUTHORITY}.key"), "-CAcreateserial"]
    output = ["-out", f"{base}.crt", "-extfile", str(extensions)]
    _openssl(["x509", "-req", "-in", str(request), *authority, "-days", DAYS, *output])
    request.unlink()
    extensions.unlink()


def _write_kubeconfig(settings: Settings, certificate: Certificate, *, api_address: str) -> None:
    text = configuration.kubeconfig(
        context=settings.context,
        user=certificate.file,
        server=api_address,
        authority=_encoded(settings.certificates / f"{AUTHORITY}.crt"),
        certificate=_encoded(settings.certificates / f"{certificate.file}.crt"),
        key=_encoded(settings.certificates / f"{certificate.file}.key"),
    )
    file = settings.state / f"{certificate.file}.kubeconfig"
    if file.exists() and file.read_text() == text:
        return
    fresh = file.with_suffix(".new")
    fresh.touch(mode=0o600)
    fresh.write_text(text)
    fresh.rename(file)


_NEW_KEY: Sequence[str] = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


def _encoded(file: Path) -> str:
    return base64.b64encode(file.read_bytes()).decode()


def _openssl(arguments: Sequence[str]) -> None:
    done = subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=False, umask=0o077)
    if done.returncode != 0:
        raise DevclusterError(f"openssl {arguments[0]} failed: {done.stderr.strip()[-500:]}")
