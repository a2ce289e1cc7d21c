"""Keys: one pair for each host, of which a date says nothing."""

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from fusemirror.keys import make_key_pair


def test_a_certificate_belongs_to_its_key_and_does_not_run_out() -> None:
    pair = make_key_pair("alpha")
    certificate = x509.load_pem_x509_certificate(pair.certificate.encode())
    key = serialization.load_pem_private_key(pair.key.encode(), None)
    assert certificate.public_key() == key.public_key()
    assert (certificate.not_valid_before_utc.year, certificate.not_valid_after_utc.year) == (1970, 9999)
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_no_two_are_the_same() -> None:
    assert make_key_pair("alpha").key != make_key_pair("alpha").key


@given(st.text(st.characters(exclude_categories=["Cs"])) | st.text("0𐀀", min_size=20))
@settings(max_examples=30)
def test_every_name_of_a_host_will_do(name: str) -> None:
    certificate = x509.load_pem_x509_certificate(make_key_pair(name).certificate.encode())
    (found,) = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    assert found.value == "fusemirror" if not name else name.startswith(str(found.value))
