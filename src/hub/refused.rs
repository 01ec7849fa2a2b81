//! Why a publish is refused, and how its sender is told.

use super::plain::LEVELS_MAX;
use super::ways::TOO_LARGE_FOR_CLOUD;
use crate::identity::policy::Forbidden;
use crate::iothub::bag::BagError;
use crate::iothub::topics::MalformedTopic;
use crate::mqtt::v5::ReasonCode;

/// Why a publish was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Not allowed.
    #[error("{0}")]
    Forbidden(#[from] Forbidden),
    /// The property bag does not read.
    #[error("property bag: {0}")]
    Bag(#[from] BagError),
    /// What was sent beside the topic is no message's property.
    #[error("properties: {0}")]
    Properties(BagError),
    /// A topic of the dialect that does not read.
    #[error("{0}")]
    Topic(#[from] MalformedTopic),
    /// The message is larger than `limits.max_message_bytes`.
    #[error("message of {bytes} bytes, over max_message_bytes = {max}")]
    TooLarge {
        /// Body and properties.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// The message has no other way than up, and the cloud does not take one so large.
    #[error("message of {bytes} bytes, and the cloud takes at most {max}")]
    TooLargeForCloud {
        /// Body and properties.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// The properties, escaped as receivers get them in their topic, are too long for a topic.
    #[error("properties of {bytes} bytes in a receiver's topic, which takes at most {max}")]
    BagTooLong {
        /// The property bag.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// There are as many retained messages as may be.
    #[error("over max_retained_messages or max_retained_bytes")]
    RetainedFull,
    /// The topic has more levels than topics may have.
    #[error("topic of more than {LEVELS_MAX} levels")]
    TopicTooDeep,
    /// The topic is longer than `limits.max_topic_bytes`.
    #[error("topic of {bytes} bytes, over max_topic_bytes = {max}")]
    TopicTooLong {
        /// The topic.
        bytes: usize,
        /// The limit.
        max: usize,
    },
}

impl Refused {
    /// A short stable word for metrics.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::Forbidden(forbidden) => forbidden.reason(),
            Self::Bag(_) | Self::Properties(_) => "bad_property_bag",
            Self::BagTooLong { .. } => "properties_too_long",
            Self::Topic(_) => "bad_topic",
            Self::TooLarge { .. } => "too_large",
            Self::TooLargeForCloud { .. } => TOO_LARGE_FOR_CLOUD,
            Self::RetainedFull => "retained_full",
            Self::TopicTooLong { .. } | Self::TopicTooDeep => "topic_too_long",
        }
    }

    /// What PUBACK says of it (MQTT 5 §3.4.2.1).
    #[must_use]
    pub fn reason_code(&self) -> ReasonCode {
        match self {
            Self::Forbidden(_) => ReasonCode::NotAuthorized,
            Self::Properties(_) => ReasonCode::ImplementationSpecific,
            Self::Bag(_) | Self::Topic(_) => ReasonCode::TopicNameInvalid,
            Self::TooLarge { .. }
            | Self::TooLargeForCloud { .. }
            | Self::BagTooLong { .. }
            | Self::RetainedFull
            | Self::TopicTooLong { .. }
            | Self::TopicTooDeep => ReasonCode::QuotaExceeded,
        }
    }
}
