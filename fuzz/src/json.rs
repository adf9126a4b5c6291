//! Mutations of JSON trees.

use crate::Random;
use serde_json::{Map, Value};

/// Changes one place of a tree, mostly by little. `words` are texts that mean something there.
pub fn mutate(json: &mut Value, words: &[&str], random: &mut Random) {
    match json {
        Value::Object(o) if !o.is_empty() && !random.one_in(24) => {
            let at = random.below(o.len());
            mutate(o.values_mut().nth(at).expect("below the length"), words, random);
        }
        Value::Object(o) => edit_object(o, words, random),
        Value::Array(a) if !a.is_empty() && !random.one_in(12) => {
            let at = random.below(a.len());
            mutate(&mut a[at], words, random);
        }
        Value::Array(a) => edit_array(a, random),
        other if random.one_in(12) => *other = leaf(words, random),
        Value::Number(n) => *json = number(n, random),
        Value::Bool(b) => *b = !*b,
        Value::String(s) => edit_text(s, words, random),
        Value::Null => *json = leaf(words, random),
    }
}

fn edit_object(o: &mut Map<String, Value>, words: &[&str], random: &mut Random) {
    let keys: Vec<String> = o.keys().cloned().collect();
    match random.below(4) {
        0 if !keys.is_empty() => drop(o.remove(random.pick(&keys))),
        // one key's value under another
        1 if keys.len() > 1 => {
            let (from, to) = (random.pick(&keys).clone(), random.pick(&keys).clone());
            let value = o[&from].clone();
            o.insert(to, value);
        }
        _ => {
            let value = leaf(words, random);
            o.insert((*random.pick(words)).to_string(), value);
        }
    }
}

fn edit_array(a: &mut Vec<Value>, random: &mut Random) {
    if a.is_empty() {
        return a.push(Value::from(random.number(1)));
    }
    let (i, j) = (random.below(a.len()), random.below(a.len()));
    match random.below(4) {
        0 => a.swap(i, j),
        1 => drop(a.remove(i)),
        2 => a.insert(i, a[j].clone()),
        _ => a[i] = a[j].clone(),
    }
}

fn edit_text(s: &mut String, words: &[&str], random: &mut Random) {
    match random.below(4) {
        0 => s.push_str(words[random.below(words.len())]),
        1 => drop(s.pop()),
        _ => *s = (*random.pick(words)).to_string(),
    }
}

fn number(n: &serde_json::Number, random: &mut Random) -> Value {
    match n.as_i64() {
        Some(n) if !random.one_in(16) => Value::from(random.number(n)),
        _ => Value::from(random.float(n.as_f64().unwrap_or(0.0))),
    }
}

fn leaf(words: &[&str], random: &mut Random) -> Value {
    match random.below(7) {
        0 => Value::Null,
        1 => Value::Bool(random.one_in(2)),
        2 => Value::from(random.float(1.0)),
        3 => Value::Array(vec![]),
        4 => Value::Object(Map::new()),
        5 => Value::from(random.number(0)),
        _ => Value::from(*random.pick(words)),
    }
}

/// Changes one place by something of its kind: numbers stay whole or not, texts become others of
/// their group in `alike`, lists get or lose what they hold.
pub fn mutate_alike(json: &mut Value, alike: &[&[&str]], random: &mut Random) {
    match json {
        Value::Object(o) if !o.is_empty() => {
            let at = random.below(o.len());
            mutate_alike(o.values_mut().nth(at).expect("below the length"), alike, random);
        }
        Value::Array(a) if !a.is_empty() && !random.one_in(12) => {
            let at = random.below(a.len());
            mutate_alike(&mut a[at], alike, random);
        }
        Value::Array(a) if !a.is_empty() => edit_array(a, random),
        Value::Number(n) => *json = near(n, random),
        Value::Bool(b) => *b = !*b,
        Value::String(s) => {
            let groups: Vec<_> = alike.iter().filter(|group| group.contains(&&s[..])).collect();
            if let Some(group) = groups.get(random.below(groups.len())) {
                *s = group[random.below(group.len())].to_string();
            }
        }
        Value::Null if random.one_in(4) => *json = Value::from(random.below(4)),
        _ => {}
    }
}

/// A number of the same kind, mostly near.
fn near(n: &serde_json::Number, random: &mut Random) -> Value {
    match (n.as_i64(), random.below(8)) {
        (Some(n), 0) => Value::from(random.number(n)),
        (Some(n), 1..=4) => Value::from(
            random.below((n.unsigned_abs() as usize).saturating_mul(2).saturating_add(2)),
        ),
        (Some(n), 5) => Value::from(n.saturating_sub(1).max(0)),
        (Some(n), _) => Value::from(n.saturating_add(1)),
        (None, _) => Value::from(random.float(n.as_f64().unwrap_or(0.0))),
    }
}

/// [`mutate`] on JSON text, a few times; `None` if it is no JSON.
pub fn mutate_text(text: &[u8], words: &[&str], random: &mut Random) -> Option<Vec<u8>> {
    let mut json: Value = serde_json::from_slice(text).ok()?;
    (0..=random.few()).for_each(|_| mutate(&mut json, words, random));
    serde_json::to_vec(&json).ok()
}
