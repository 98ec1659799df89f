//! The keys of a span, a page at a time.

use bytes::Bytes;
use palisade_wire::{MAX_PAGE_ROWS, Outcome, Page, Row};

use crate::{
    Client, ClientError,
    client::unexpected,
    driver::{Call, Span},
};

/// A scan under way: see [`Client::scan`]. Each page is linearizable; pages are not of one moment.
#[derive(Clone, Debug)]
pub struct Scan {
    client: Client,
    /// What is left, unless it is through.
    left: Option<Span>,
}

impl Scan {
    pub(crate) fn new(client: Client, begin: Bytes, end: Option<Bytes>) -> Self {
        let span = Span { begin, end, backward: false, max_rows: MAX_PAGE_ROWS };
        Self { client, left: Some(span) }
    }

    /// The last keys come first.
    #[must_use]
    pub fn backward(mut self) -> Self {
        self.left = self.left.map(|span| Span { backward: true, ..span });
        self
    }

    /// Pages hold so many rows at most.
    #[must_use]
    pub fn page_rows(mut self, max_rows: u32) -> Self {
        self.left = self.left.map(|span| Span { max_rows, ..span });
        self
    }

    /// The next rows, at least one; or `None` when the span is through. After an error, the same
    /// page can be asked for again.
    pub async fn next_page(&mut self) -> Result<Option<Vec<Row>>, ClientError> {
        while let Some(span) = &mut self.left {
            if span.end.as_ref().is_some_and(|end| span.begin >= *end) {
                break;
            }
            let page = match self.client.call(Call::Scan(span.clone())).await? {
                Outcome::Page(page) => page,
                other => return Err(unexpected(&other)),
            };
            let Page { rows, resume, .. } = page;
            match resume {
                None => self.left = None,
                Some(resume) if span.backward => span.end = Some(resume),
                Some(resume) => span.begin = resume,
            }
            if !rows.is_empty() {
                return Ok(Some(rows));
            }
        }
        self.left = None;
        Ok(None)
    }

    /// All rows that are left, gathered in memory.
    pub async fn all(mut self) -> Result<Vec<Row>, ClientError> {
        let mut all = Vec::new();
        while let Some(mut rows) = self.next_page().await? {
            all.append(&mut rows);
        }
        Ok(all)
    }
}
