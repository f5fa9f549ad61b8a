//! Base64 as Pub/Sub's JSON has it (RFC 4648 §4, with padding).

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

pub(crate) fn encode(bytes: &[u8]) -> String {
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let group = three.iter().chain([&0, &0]).take(3).fold(0_u32, |all, byte| all << 8 | u32::from(*byte));
        for place in 0..4 {
            let digit = char::from(DIGITS[(group >> (18 - 6 * place) & 63) as usize]);
            text.push(if place <= three.len() { digit } else { '=' });
        }
    }
    text
}

pub(crate) fn decode(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for four in text.trim_end_matches('=').as_bytes().chunks(4) {
        let digit = |byte: &u8| DIGITS.iter().position(|digit| digit == byte).expect("a digit") as u32;
        let group = four.iter().fold(0, |all, byte| all << 6 | digit(byte)) << (6 * (4 - four.len()));
        bytes.extend(&group.to_be_bytes()[1..four.len()]);
    }
    bytes
}

#[test]
fn base64_is_that_of_the_specification() {
    for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")] {
        assert_eq!((encode(bytes.as_bytes()).as_str(), decode(text).as_slice()), (text, bytes.as_bytes()));
    }
}
