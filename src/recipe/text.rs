//! Serialization of recipe fields as the text that the command line takes.

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serializer};
use std::fmt::Display;
use std::str::FromStr;

/// An `Option<T>` as its text, or nothing.
pub mod option {
    use super::*;

    pub fn serialize<T: Display, S: Serializer>(
        value: &Option<T>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => to.collect_str(value),
            None => to.serialize_none(),
        }
    }

    pub fn deserialize<'de, T, D>(from: D) -> Result<Option<T>, D::Error>
    where
        T: FromStr<Err: Display>,
        D: Deserializer<'de>,
    {
        let scalar: Option<Scalar> = Option::deserialize(from)?;
        scalar.map(|scalar| scalar.text().parse().map_err(D::Error::custom)).transpose()
    }
}

/// A text, or a number that stands for its text.
#[derive(Deserialize)]
#[serde(untagged)]
enum Scalar {
    Text(String),
    Number(u64),
}

impl Scalar {
    fn text(self) -> String {
        match self {
            Scalar::Text(text) => text,
            Scalar::Number(number) => number.to_string(),
        }
    }
}

/// An `Option<T>` whose type belongs to another crate, by the name of its value.
pub mod named {
    use super::*;
    use crate::recipe::Named;

    pub fn serialize<T: Named, S: Serializer>(value: &Option<T>, to: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => to.serialize_str(value.name()),
            None => to.serialize_none(),
        }
    }

    pub fn deserialize<'de, T: Named, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<T>, D::Error> {
        let text: Option<String> = Option::deserialize(from)?;
        text.map(|text| T::named(&text).map_err(D::Error::custom)).transpose()
    }
}

/// An `Option<Vec<T>>` as a list of texts. One text with commas is read as well.
pub mod list {
    use super::*;

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum List {
        One(String),
        Many(Vec<String>),
    }

    pub fn serialize<T: Display, S: Serializer>(
        value: &Option<Vec<T>>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        match value {
            Some(values) => to.collect_seq(values.iter().map(T::to_string)),
            None => to.serialize_none(),
        }
    }

    pub fn deserialize<'de, T, D>(from: D) -> Result<Option<Vec<T>>, D::Error>
    where
        T: FromStr<Err: Display>,
        D: Deserializer<'de>,
    {
        let texts = match Option::<List>::deserialize(from)? {
            None => return Ok(None),
            Some(List::One(text)) => text.split(',').map(str::to_string).collect(),
            Some(List::Many(texts)) => texts,
        };
        texts
            .iter()
            .map(|text| text.parse().map_err(D::Error::custom))
            .collect::<Result<_, _>>()
            .map(Some)
    }
}
