//! Secrets of many forms, and what is none.

use super::*;

#[track_caller]
fn becomes(text: &str, expected: &str) {
    assert_eq!(Redactor::default().text(text), expected.replace("X", MASK), "{text}");
}

#[track_caller]
fn hides(name: &str, text: &str) {
    let masked = Redactor::default().file(name, text);
    assert!(!masked.contains("hunter2") && masked.contains(MASK), "{text}\nbecomes\n{masked}");
}

#[test]
fn a_value_whose_name_speaks_of_a_secret_is_masked() {
    becomes("password = \"hunter2 x\"", "password = \"X\"");
    becomes("PGPASSWORD=hunter2 psql", "PGPASSWORD=X psql");
    becomes(r#"{"token": "abc", "member": "n1""#, r#"{"token": "X", "member": "n1""#);
    becomes(r#"x: "AWS_SECRET_ACCESS_KEY=abc cp %p""#, r#"x: "AWS_SECRET_ACCESS_KEY=X cp %p""#);
    becomes("Authorization: Basic YTpi", "Authorization: X");
    becomes("host=a password=one user=b password='two'", "host=a password=X user=b password='X'");
    becomes("ALTER ROLE a PASSWORD 'hunter2';", "ALTER ROLE a PASSWORD 'X';");
    becomes(r#"{\"password\": \"hunter2\"}"#, r#"{\"password\": \"X\"}"#);
}

/// Each of them, on lines of their own.
#[test]
fn a_secret_does_not_get_out_by_the_way_it_is_written() {
    for line in [
        r#"password = "a\"hunter2""#,
        r#"{\"password\": \"a\\\"hunter2\"}"#,
        "password = \"\"\"\na\nhunter2\n\"\"\"",
        "password = '''\nhunter2'''",
        "PGPASSWORD=hun,hunter2 psql",
        "PGPASSWORD=hun;hunter2",
        "x?password=hun&hunter2",
        r"PGPASSWORD=hun\ hunter2 psql",
        "PGPASSWORD='hun'hunter2 psql",
        "PGPASSWORD=hun' 'hunter2 psql",
        "PGPASSWORD={x}hunter2 psql",
        "tokens = [\"hunter2\"]",
        r#"{\"tokens\": [\"a\", \"hunter2\"]}"#,
        "tokens = [\n  \"a\",\n  \"hunter2\",\n]",
        "\"app.jwt_secret\": {\n  \"value\": \"hunter2\"\n",
        "ALTER ROLE a PASSWORD E'a\\'hunter2'",
        "ALTER ROLE a PASSWORD 'a''hunter2'",
        "ALTER ROLE a PASSWORD  'hunter2'",
        "ALTER ROLE a PASSWORD\t$x$hunter2$x$",
        "password=null-hunter2",
        "Authorization: Digest username=\"a\", response=\"hunter2\"",
        "curl -H 'Authorization: Bearer hunter2' https://a/",
        "x --api-key=hunter2",
        "api_key=hunter2",
        "repo1-cipher-pass=hunter2",
        "DB_PASS=hunter2",
        "curl -u a:hunter2 https://a/",
        "curl -ua:hunter2 https://a/",
        "curl --user 'a:hunter2' https://a/",
        "curl --user=a:hunter2 https://a/",
        "mysql -phunter2",
        "sshpass -p hunter2 scp",
        "x --password hunter2",
        "x --password  'hunter2'",
        "x --password \\\n  hunter2",
        "stonith_command = [\"fence_ipmilan\", \"--password\", \"hunter2\"",
        "stonith_command = [\"fence_ipmilan\",\"-p\",\"hunter2\"",
        r#"args: [\"--db-password\", \"hunter2\"]"#,
        "postgres://u:a/hunter2@h",
        "postgres://u:a@hunter2@h/x and mail@h",
        "postgres://u:a@h,postgres://u:hunter2@h",
        "password: |\n  a\n  hunter2\nnext: x",
        "tokens:\n- hunter2\nnext: x",
        "ldapbindpasswd=\"hunter2\"",
        "pwd=hunter2",
        r#"got {"name": "db_password", "value": "hunter2"}"#,
    ] {
        hides("a.log", line);
        hides("a.log", &format!("2026-01-01 LOG: before\n{line}\nafter 'x' \"y\"\n"));
        // Of a log that is cut anywhere, it is enough that something comes out.
        for at in 0..line.len() {
            let parts = [Redactor::default().text(&line[..at]), Redactor::default().text(&line[at..])];
            assert!(parts.iter().any(|part| !part.is_empty()), "{line}");
        }
    }
}

#[test]
fn what_is_no_secret_stays() {
    for text in [
        "secret_file = \"/etc/matriarch/secret\"",
        "superuser_password_file = \"/etc/x\"",
        "password_env = \"PGPASSWORD_OF_ROUTER\"",
        "password_encryption = scram-sha-256",
        "the secret of the cluster can't be read",
        "FATAL:  password authentication failed for user \"app\"",
        "3 passed: 2",
        "\"token\": null, \"x\": 1",
        "http://10.0.0.1:7400/status",
        "cp -pr a b; curl -u kim https://a",
        "",
        "two\n\nlines\n",
    ] {
        becomes(text, text);
    }
    becomes("tokens:\n- a\nnext: x\n", "tokens:\nX\nnext: x\n");
}

#[test]
fn documents_are_masked_by_their_keys() {
    let toml = "\
[layers] # a: hunter2
stonith_command = [\"fence_ipmilan\", \"--password\", \"hunter2\"]
[[hooks.run]]
command = [\"/usr/bin/tell\", \"hunter2\"]
[hooks.patroni]
on_start = \"/usr/bin/tell hunter2\"
[other]
run = [\"x\", \"-p\", \"hunter2\", \"--db-password=hunter2\"]
more = [\"x\", \"-phunter2\", \"-u\", \"a:hunter2\"]
tokens = [\"hunter2\", [\"hunter2\"]]
password = \"\"\"
hunter2
hunter2\"\"\"
pin.secret.value = \"hunter2\"
address = \"postgres://u:a/hunter2@h\"
secret_file = \"/etc/secret\"
";
    hides("host/matriarch.toml", toml);
    let masked = Redactor::default().file("matriarch.toml", toml);
    for stays in
        ["stonith_command = [\"fence_ipmilan\"", "secret_file = \"/etc/secret\"", "\"/usr/bin/tell [redacted]\""]
    {
        assert!(masked.contains(stays), "{stays} in\n{masked}");
    }
    for json in [
        "{\"parameters.app.jwt_secret\": {\n\"value\": \"hunter2\"}}",
        r#"{"archive_command": {"value": "push hunter2", "help": "how files are archived"}}"#,
        r#"{"parameters.ssl_passphrase_command": {"value": "PGPASSWORD=hunter2 x"}}"#,
        r#"[{"name":"db_password","value":"hunter2"}]"#,
        r#"{"said": "it has password='a\"hunter2'", "n": 1}"#,
        r#"{"said": "{\"password\": \"hunter2\"}"}"#,
        r#"{"headers": [["Authorization", "Digest hunter2"]], "password": 20}"#,
    ] {
        hides("cluster/settings.json", json);
        hides("cluster/events.jsonl", &format!("{{\"at\":1}}\n{}\n", json.replace('\n', "")));
        hides("a.log", json);
    }
    let masked = Redactor::default().file("a.json", r#"{"a_command": {"value": "push it", "help": "how it is"}}"#);
    assert!(masked.contains("\"push [redacted]\"") && masked.contains("\"how it is\""), "{masked}");
    let harmless = "{\"b\": 1,\n \"a\": {\"secret_file\": \"/etc/x\", \"token\": null, \"clone_command\": \"\"}}";
    assert_eq!(Redactor::default().file("a.json", harmless), harmless, "as it was written");
}

#[test]
fn addresses_lose_their_passwords_and_keys_are_left_out() {
    becomes("to postgres://app:hunter2@db:5432/x and http://a@b/", "to postgres://app:X@db:5432/x and http://a@b/");
    becomes("a\n-----BEGIN EC PRIVATE KEY-----\nMIIB\n-----END EC PRIVATE KEY-----\nb\n", "a\nX\nb\n");
}

#[test]
fn what_is_known_is_masked_wherever_it_stands() {
    let mut redactor = Redactor::default();
    redactor.learn("s3cret-of-main\n");
    redactor.learn("abc");
    assert_eq!(redactor.text("it is s3cret-of-main, abc"), format!("it is {MASK}, abc"), "too short to be told apart");
    let json = redactor.file("a.json", "{\"at s3cret-of-main\": [\"x s3cret-of-main\"]}");
    assert!(!json.contains("s3cret"), "{json}");
    assert_eq!(
        redactor.text("password=s3cret-of-main-hunter2"),
        format!("password={MASK}"),
        "and what stands beside it"
    );
}
