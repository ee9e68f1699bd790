//! A VO from its founding to an eviction, and everything that is refused on the way.

#![expect(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use grid_vo::{
    Admission, Authority, Credentials, CredentialsError, MintError, NodeKey, OpenError, PeerId, RedeemError,
    RenewError, RevocationError, RevocationList, RevokeError, Role, Token, VerifyError, token_public_key,
    verify_peer,
};
use libgrid::ids::NodeId;
use rustls::pki_types::CertificateDer;

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

fn start() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_790_000_000)
}

fn addrs() -> Vec<SocketAddr> {
    vec!["10.0.0.1:7411".parse().unwrap()]
}

fn found(dir: &Path) -> Authority {
    Authority::create(dir, "lab", start()).unwrap()
}

fn mint(authority: &mut Authority, now: SystemTime) -> Token {
    // What a person pastes is what counts.
    authority.mint(&addrs(), DAY, now).unwrap().to_line().parse().unwrap()
}

fn redeem(
    authority: &mut Authority,
    token: &Token,
    key: &NodeKey,
    now: SystemTime,
) -> Result<Admission, RedeemError> {
    authority.redeem(&token.public_key().unwrap(), key.public_key(), "node2", now)
}

fn verify(authority: &Authority, cert_der: &[u8], now: SystemTime) -> Result<PeerId, VerifyError> {
    verify_peer(authority.ca(), "lab", &[CertificateDer::from(cert_der.to_vec())], now, &|_| false)
}

#[test]
fn a_node_joins_renews_and_is_evicted() {
    let home = tempfile::tempdir().unwrap();
    let (ca_dir, node_dir) = (home.path().join("authority"), home.path().join("node"));
    let mut authority = found(&ca_dir);

    let founder = NodeKey::generate().unwrap();
    let roles = [Role::Node, Role::Admin, Role::Authority];
    let first = authority.admit(founder.public_key(), "node1", &roles, start()).unwrap();
    let first = Credentials::new("lab", founder, &first, start()).unwrap();
    assert_eq!((first.node(), first.vo()), (NodeId(1), "lab"));
    assert!(roles.into_iter().all(|role| first.has(role)));

    let token = mint(&mut authority, start());
    assert!(authority.knows_token(&token.public_key().unwrap()));
    let (shown, _) = token.identity().unwrap();
    assert_eq!(token_public_key(&shown[0]), Some(token.public_key().unwrap()));
    assert_eq!(token.verify_server(&first.chain(), start()).unwrap().node, NodeId(1));

    let key = NodeKey::for_joining(&node_dir).unwrap();
    let admission = redeem(&mut authority, &token, &key, start()).unwrap();
    let second = token.accept(key, &admission, start()).unwrap();
    second.save(&node_dir).unwrap();
    assert_eq!(second.id().name, "node2");
    assert_eq!(second.id().roles, [Role::Node]);
    assert!(!second.needs_renewal(start() + 11 * HOUR));
    assert!(second.needs_renewal(start() + 12 * HOUR));
    assert!(!second.expired(start() + 23 * HOUR) && second.expired(start() + 25 * HOUR));

    let later = start() + 13 * HOUR;
    let renewal = authority.renew(second.id(), second.public_key(), later).unwrap();
    let renewed = second.renewed(&renewal, later).unwrap();
    renewed.save(&node_dir).unwrap();
    let loaded = Credentials::load(&node_dir).unwrap().unwrap();
    assert_eq!(loaded.chain(), renewed.chain());
    assert_eq!(loaded.public_key(), second.public_key());
    assert_eq!(loaded.id(), renewed.id());

    let list = authority.revoke(NodeId(2)).unwrap();
    list.verify(authority.ca(), "lab").unwrap();
    let refused = verify_peer(authority.ca(), "lab", &renewed.chain(), later, &|node| list.contains(node));
    assert_eq!(refused, Err(VerifyError::Revoked { node: NodeId(2) }));
    let refused = authority.renew(renewed.id(), renewed.public_key(), later);
    assert!(matches!(refused, Err(RenewError::Revoked { node: NodeId(2) })));
    let passes = verify_peer(authority.ca(), "lab", &first.chain(), start(), &|node| list.contains(node));
    assert_eq!(passes.unwrap().node, NodeId(1));
}

#[test]
fn a_token_lets_one_machine_in_even_after_a_restart_of_the_authority() {
    let dir = tempfile::tempdir().unwrap();
    let mut authority = found(dir.path());
    let token = mint(&mut authority, start());
    let (key, other) = (NodeKey::generate().unwrap(), NodeKey::generate().unwrap());
    let admitted = redeem(&mut authority, &token, &key, start()).unwrap();
    drop(authority);

    let mut authority = Authority::open(dir.path()).unwrap();
    let again = redeem(&mut authority, &token, &key, start() + HOUR).unwrap();
    assert_eq!(again.node, admitted.node, "the answer was lost: the same key gets the same number");
    let refused = redeem(&mut authority, &token, &other, start() + HOUR).unwrap_err();
    assert!(matches!(refused, RedeemError::Used { node: NodeId(1), .. }), "{refused}");
    assert!(refused.to_string().contains("was used on"), "{refused}");
    assert_eq!(authority.outstanding_tokens(start()), 0);

    let fresh = mint(&mut authority, start());
    assert_eq!(redeem(&mut authority, &fresh, &other, start()).unwrap().node, NodeId(2));
    authority.revoke(NodeId(2)).unwrap();
    let refused = redeem(&mut authority, &fresh, &other, start()).unwrap_err();
    assert!(matches!(refused, RedeemError::Revoked { node: NodeId(2) }), "{refused}");
}

#[test]
fn expired_foreign_and_forgotten_tokens_are_refused_and_change_nothing() {
    let home = tempfile::tempdir().unwrap();
    let mut authority = found(&home.path().join("ours"));
    let mut elsewhere = Authority::create(&home.path().join("theirs"), "lab", start()).unwrap();
    let key = NodeKey::generate().unwrap();
    let state = home.path().join("ours/state.json");

    let token = mint(&mut authority, start());
    let before = std::fs::read(&state).unwrap();
    let late = redeem(&mut authority, &token, &key, start() + DAY).unwrap_err();
    assert!(matches!(late, RedeemError::Expired { .. }), "{late}");
    assert!(late.to_string().contains("expired on"), "{late}");

    let foreign = mint(&mut elsewhere, start());
    let refused = redeem(&mut authority, &foreign, &key, start()).unwrap_err();
    assert!(matches!(refused, RedeemError::Unknown { .. }), "{refused}");
    assert!(!authority.knows_token(&foreign.public_key().unwrap()));
    let bad_name = authority.redeem(&token.public_key().unwrap(), key.public_key(), "a\nb", start());
    assert!(matches!(bad_name, Err(RedeemError::Name(_))));
    assert_eq!(std::fs::read(&state).unwrap(), before);

    // The records forget it a week after it expired, at the next write.
    mint(&mut authority, start() + 9 * DAY);
    let refused = redeem(&mut authority, &token, &key, start() + 9 * DAY).unwrap_err();
    assert!(matches!(refused, RedeemError::Unknown { .. }), "{refused}");
}

#[test]
fn a_joiner_refuses_a_server_or_an_answer_of_another_vo() {
    let home = tempfile::tempdir().unwrap();
    let mut ours = found(&home.path().join("ours"));
    let mut theirs = Authority::create(&home.path().join("theirs"), "lab", start()).unwrap();
    let token = mint(&mut ours, start());
    let key = NodeKey::generate().unwrap();
    let answer = theirs.admit(key.public_key(), "evil", &[Role::Node], start()).unwrap();
    let evil = Credentials::new("lab", key.clone(), &answer, start()).unwrap();

    let refused = token.verify_server(&evil.chain(), start()).unwrap_err();
    assert!(matches!(refused, VerifyError::OtherFingerprint { .. }));
    // Showing the right CA certificate does not help without its signature.
    let mixed = [evil.chain()[0].clone(), ours.ca().clone()];
    let refused = token.verify_server(&mixed, start()).unwrap_err();
    assert!(matches!(refused, VerifyError::OtherAuthority { .. }));
    let refused = token.verify_server(&[], start()).unwrap_err();
    assert!(matches!(refused, VerifyError::OtherFingerprint { .. }));

    let refused = token.accept(key.clone(), &answer, start()).unwrap_err();
    assert!(matches!(refused, CredentialsError::Refused(VerifyError::OtherFingerprint { .. })));
    let good = redeem(&mut ours, &token, &key, start()).unwrap();
    let wrong_key = NodeKey::generate().unwrap();
    let refused = token.accept(wrong_key, &good, start()).unwrap_err();
    assert!(matches!(refused, CredentialsError::OtherKey { node: NodeId(1) }));
    let lied = Admission { node: NodeId(9), ..good };
    let refused = token.accept(key, &lied, start()).unwrap_err();
    assert!(matches!(refused, CredentialsError::OtherNode { .. }));
}

#[test]
fn certificates_are_refused_for_what_is_wrong_with_them() {
    let home = tempfile::tempdir().unwrap();
    let mut ours = found(&home.path().join("ours"));
    let mut same_name = Authority::create(&home.path().join("theirs"), "lab", start()).unwrap();
    let mut office = Authority::create(&home.path().join("office"), "office", start()).unwrap();
    let key = NodeKey::generate().unwrap();
    let good = ours.admit(key.public_key(), "n", &[Role::Node], start()).unwrap();

    assert_eq!(verify(&ours, &good.cert_der, start()).unwrap().node, NodeId(1));
    let early = verify(&ours, &good.cert_der, start() - 2 * HOUR).unwrap_err();
    assert!(matches!(early, VerifyError::NotYetValid { .. }), "{early}");
    assert!(verify(&ours, &good.cert_der, start() - HOUR / 2).is_ok(), "clocks may differ");
    let late = verify(&ours, &good.cert_der, start() + DAY + HOUR).unwrap_err();
    assert!(matches!(late, VerifyError::Expired { .. }), "{late}");
    for other in [&mut same_name, &mut office] {
        let theirs = other.admit(key.public_key(), "n", &[Role::Node], start()).unwrap();
        let refused = verify(&ours, &theirs.cert_der, start()).unwrap_err();
        assert_eq!(refused, VerifyError::OtherAuthority { vo: "lab".into() });
    }
    let token = mint(&mut ours, start());
    let refused = verify(&ours, &token.identity().unwrap().0[0], start()).unwrap_err();
    assert!(matches!(refused, VerifyError::OtherAuthority { .. }), "{refused}");
    let refused = verify(&ours, ours.ca(), start()).unwrap_err();
    assert!(matches!(refused, VerifyError::OtherAuthority { .. }), "{refused}");
    let none = verify_peer(ours.ca(), "lab", &[], start(), &|_| false).unwrap_err();
    assert!(matches!(none, VerifyError::NoCertificate { .. }));
    for end in 0..good.cert_der.len() {
        assert!(verify(&ours, &good.cert_der[..end], start()).is_err(), "cut at {end}");
    }
    for place in 0..good.cert_der.len() {
        let mut altered = good.cert_der.clone();
        altered[place] ^= 1;
        assert!(verify(&ours, &altered, start()).is_err(), "altered at {place}");
    }
}

#[test]
fn our_own_ca_is_believed_only_about_ids_that_it_gives() {
    let home = tempfile::tempdir().unwrap();
    let ours = found(home.path());
    type Case = (&'static [&'static str], fn(&VerifyError) -> bool);
    let cases: [Case; 5] = [
        (&["spiffe://office/node/3"], |e| matches!(e, VerifyError::OtherVo { .. })),
        (&["spiffe://lab/user/ann"], |e| matches!(e, VerifyError::BadId { .. })),
        (&["spiffe://lab/node/3", "spiffe://lab/node/4"], |e| matches!(e, VerifyError::BadId { .. })),
        (&["dns:lab"], |e| matches!(e, VerifyError::BadId { .. })),
        (&[], |e| matches!(e, VerifyError::BadId { .. })),
    ];
    for (names, expected) in cases {
        let refused = verify(&ours, &signed_with_names(home.path(), names), start()).unwrap_err();
        assert!(expected(&refused), "{names:?}: {refused:?}");
    }
    let fine = signed_with_names(home.path(), &["spiffe://lab/node/3"]);
    assert_eq!(verify(&ours, &fine, start()).unwrap().node, NodeId(3));
}

/// A certificate that the CA in `dir` signs, with names that `Authority` would never write.
fn signed_with_names(dir: &Path, names: &[&str]) -> Vec<u8> {
    let pem = std::fs::read_to_string(dir.join("ca.key")).unwrap();
    let ca_key = rcgen::KeyPair::from_pem_and_sign_algo(&pem, &rcgen::PKCS_ED25519).unwrap();
    let mut ca = rcgen::CertificateParams::default();
    ca.distinguished_name = rcgen::DistinguishedName::new();
    ca.distinguished_name.push(rcgen::DnType::OrganizationName, "GridOS VO");
    ca.distinguished_name.push(rcgen::DnType::CommonName, "lab");
    let mut params = rcgen::CertificateParams::default();
    params.subject_alt_names = names
        .iter()
        .map(|name| match name.strip_prefix("dns:") {
            Some(dns) => rcgen::SanType::DnsName(dns.try_into().unwrap()),
            None => rcgen::SanType::URI((*name).try_into().unwrap()),
        })
        .collect();
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let issuer = rcgen::Issuer::from_params(&ca, &ca_key);
    params.signed_by(&key, &issuer).unwrap().der().to_vec()
}

#[test]
fn a_revocation_list_is_believed_only_as_the_ca_signed_it() {
    let home = tempfile::tempdir().unwrap();
    let mut ours = found(&home.path().join("ours"));
    let theirs = Authority::create(&home.path().join("theirs"), "lab", start()).unwrap();
    for number in 1..=3 {
        let roles: &[Role] = if number == 1 { &[Role::Node, Role::Authority] } else { &[Role::Node] };
        ours.admit(NodeKey::generate().unwrap().public_key(), "n", roles, start()).unwrap();
    }
    assert!(matches!(ours.revoke(NodeId(1)), Err(RevokeError::Authority { .. })));
    assert!(matches!(ours.revoke(NodeId(4)), Err(RevokeError::Unknown { .. })));
    let first = ours.revoke(NodeId(3)).unwrap();
    assert_eq!(ours.revoke(NodeId(3)).unwrap(), first, "revoking twice changes nothing");
    let list = ours.revoke(NodeId(2)).unwrap();
    assert!(list.version() > first.version());
    assert_eq!(list.nodes().collect::<Vec<_>>(), [NodeId(2), NodeId(3)]);

    assert!(matches!(list.verify(theirs.ca(), "lab"), Err(RevocationError::Signature { .. })));
    assert!(matches!(list.verify(ours.ca(), "office"), Err(RevocationError::OtherVo { .. })));
    let honest = serde_json::to_value(&list).unwrap();
    for (field, forged) in [
        ("version", serde_json::json!(99)),
        ("nodes", serde_json::json!([2])),
        ("signature", serde_json::json!([])),
    ] {
        let mut value = honest.clone();
        value[field] = forged;
        let forged: RevocationList = serde_json::from_value(value).unwrap();
        assert!(matches!(forged.verify(ours.ca(), "lab"), Err(RevocationError::Signature { .. })), "{field}");
    }

    assert!(RevocationList::load(home.path(), ours.ca(), "lab").unwrap().is_none());
    list.save(home.path()).unwrap();
    assert_eq!(RevocationList::load(home.path(), ours.ca(), "lab").unwrap(), Some(list));
    std::fs::write(home.path().join("revoked.json"), "{").unwrap();
    let refused = RevocationList::load(home.path(), ours.ca(), "lab");
    assert!(matches!(refused, Err(RevocationError::Malformed { .. })));
}

#[test]
fn a_crash_in_the_middle_of_a_write_leaves_the_records_as_they_were() {
    let dir = tempfile::tempdir().unwrap();
    let mut authority = found(dir.path());
    let token = mint(&mut authority, start());
    redeem(&mut authority, &token, &NodeKey::generate().unwrap(), start()).unwrap();
    drop(authority);
    // What a crash between the write and the rename leaves: half a document beside the old one.
    std::fs::write(dir.path().join(".state.json.new"), "{\"format\": \"gridos auth").unwrap();

    let mut authority = Authority::open(dir.path()).unwrap();
    let refused = redeem(&mut authority, &token, &NodeKey::generate().unwrap(), start());
    assert!(matches!(refused, Err(RedeemError::Used { .. })));
    mint(&mut authority, start());
    assert!(!dir.path().join(".state.json.new").exists());
}

#[test]
fn a_token_is_not_used_up_by_an_answer_that_could_not_be_recorded() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let mut authority = found(dir.path());
    let token = mint(&mut authority, start());
    let key = NodeKey::generate().unwrap();
    // A folder in the way of the temporary file fails the write, for root as well.
    let obstacle = dir.path().join(".state.json.new");
    std::fs::create_dir(&obstacle).unwrap();
    assert!(matches!(redeem(&mut authority, &token, &key, start()), Err(RedeemError::File(_))));
    std::fs::remove_dir(&obstacle).unwrap();
    assert_eq!(redeem(&mut authority, &token, &key, start()).unwrap().node, NodeId(1));

    for (name, mode) in [("ca.key", 0o600), ("state.json", 0o600)] {
        let found = std::fs::metadata(dir.path().join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!(found, mode, "{name}");
    }
    let records = std::fs::read_to_string(dir.path().join("state.json")).unwrap();
    let line = token.to_line();
    assert!(!records.contains(&line[line.len() - 40..]), "the records must not let their reader join");
}

#[test]
fn an_authority_is_made_once_and_a_damaged_one_is_told() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(Authority::open(dir.path()), Err(OpenError::Missing { .. })));
    assert!(matches!(Authority::create(dir.path(), "No Name", start()), Err(OpenError::Name(_))));
    // A crash after the key was written: no records, so there is no authority yet.
    std::fs::write(dir.path().join("ca.key"), "half").unwrap();
    let mut authority = found(dir.path());
    assert!(matches!(Authority::create(dir.path(), "lab", start()), Err(OpenError::Exists { .. })));
    let none = authority.mint(&[], DAY, start());
    assert!(matches!(none, Err(MintError::Addresses { count: 0 })));
    let many = authority.mint(&[addrs()[0]; 9], DAY, start());
    assert!(matches!(many, Err(MintError::Addresses { count: 9 })));
    assert!(matches!(authority.mint(&addrs(), Duration::ZERO, start()), Err(MintError::Lifetime)));

    for (file, content) in [("ca.key", "x"), ("ca.crt", "x"), ("state.json", "{}")] {
        let path = dir.path().join(file);
        let good = std::fs::read(&path).unwrap();
        std::fs::write(&path, content).unwrap();
        assert!(Authority::open(dir.path()).is_err(), "{file}");
        std::fs::write(&path, good).unwrap();
    }
    Authority::open(dir.path()).unwrap();
}

#[test]
fn credentials_are_the_old_or_the_new_and_a_new_membership_replaces_them() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("node");
    let mut lab = found(&home.path().join("lab"));
    let mut office = Authority::create(&home.path().join("office"), "office", start()).unwrap();
    assert!(Credentials::load(&dir).unwrap().is_none());

    let old_key = NodeKey::for_joining(&dir).unwrap();
    let old = lab.admit(old_key.public_key(), "n", &[Role::Node], start()).unwrap();
    let old = Credentials::new("lab", old_key.clone(), &old, start()).unwrap();
    old.save(&dir).unwrap();
    let new_key = NodeKey::for_joining(&dir).unwrap();
    assert_ne!(new_key.public_key(), old_key.public_key(), "each membership has its own key");
    let new = office.admit(new_key.public_key(), "n", &[Role::Node], start()).unwrap();
    let new = Credentials::new("office", new_key, &new, start()).unwrap();
    // A crash before the rename.
    std::fs::write(dir.join(".node.crt.new"), "half").unwrap();
    assert_eq!(Credentials::load(&dir).unwrap().unwrap().vo(), "lab");
    new.save(&dir).unwrap();
    assert_eq!(Credentials::load(&dir).unwrap().unwrap().vo(), "office");
    let keys = std::fs::read_dir(&dir).unwrap().filter_map(|e| e.unwrap().file_name().into_string().ok());
    assert_eq!(keys.filter(|name| name.ends_with(".key")).count(), 1);

    let renewal = office.renew(new.id(), new.public_key(), start() + HOUR).unwrap();
    assert!(old.renewed(&renewal, start() + HOUR).is_err(), "a renewal never changes the VO");
    std::fs::write(dir.join("node.crt"), "x").unwrap();
    assert!(matches!(Credentials::load(&dir), Err(CredentialsError::Damaged { .. })));
}

#[test]
fn a_users_certificate_names_user_and_node_and_is_no_nodes() {
    let home = tempfile::tempdir().unwrap();
    let mut authority = found(home.path());
    let node = NodeKey::generate().unwrap();
    authority.admit(node.public_key(), "node1", &[Role::Node], start()).unwrap();
    let pair = NodeKey::generate().unwrap();
    // 48 bytes: the first version of the format, which all programs take.
    assert_eq!(pair.pem().lines().nth(1).unwrap().len(), 64);
    assert_eq!(pair.pem().lines().count(), 3);
    let key = pair.public_key();
    let own = authority.certify(NodeId(1), "ann", None, key, start()).unwrap();
    // It must not let anybody in as a node.
    assert!(verify(&authority, &own.cert_der, start()).is_err());
    let text = String::from_utf8_lossy(&own.cert_der).into_owned();
    assert!(text.contains("spiffe://lab/user/node1.ann"), "{text}");
    // A server's has the node's own name, whoever asks.
    let address = "10.0.0.1".parse().unwrap();
    let server = authority.certify(NodeId(1), "root", Some(&[address]), key, start()).unwrap();
    let (_, parsed) = x509_parser::parse_x509_certificate(&server.cert_der).unwrap();
    let names = parsed.subject_alternative_name().unwrap().unwrap().value.general_names.clone();
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    assert!(names.iter().any(|name| name.contains("node1") && name.starts_with("DNS")), "{names:?}");
    assert_eq!(names.len(), 3, "{names:?}");

    for bad in ["", "a b", "a/../b", "ann\n"] {
        assert!(authority.certify(NodeId(1), bad, None, key, start()).is_err(), "{bad:?}");
    }
    assert!(matches!(
        authority.certify(NodeId(9), "ann", None, key, start()),
        Err(RenewError::Unknown { .. })
    ));
    let token = mint(&mut authority, start());
    redeem(&mut authority, &token, &node, start()).unwrap();
    authority.revoke(NodeId(2)).unwrap();
    assert!(matches!(
        authority.certify(NodeId(2), "ann", None, key, start()),
        Err(RenewError::Revoked { .. })
    ));
}
