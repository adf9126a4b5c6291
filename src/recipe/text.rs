//! Fields of a recipe that are written as the text that the command line takes.

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serializer};
use std::fmt::Display;
use std::str::FromStr;

/// `Option<T>` as text or nothing.
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

/// Text, or a number that stands for its text.
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

/// `Option<T>` of a kind of another crate, by its name.
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

/// `Option<Vec<T>>` as a list of texts, or as one text with commas.
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
