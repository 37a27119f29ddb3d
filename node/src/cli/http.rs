//! Options of the HTTP port, and its opening.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use clap::Args;
use mingle_serve::Token;

use crate::driver::Show;
use crate::http::{self, Board, DEFAULT_ADDRESS, HttpError, Options, Server, TOKEN_VARIABLE};

/// Where a peer shows what it is doing.
#[derive(Args, Clone, Debug, Default)]
pub struct HttpArgs {
    /// Show what this peer is doing in a browser, as JSON and to Prometheus (docs/http.md)
    #[arg(long, help_heading = "HTTP", value_name = "ADDRESS", num_args = 0..=1, default_missing_value = DEFAULT_ADDRESS, value_parser = http::address)]
    pub http: Option<SocketAddr>,
    /// File with the token that the port asks for; needed, here or in $MINGLE_HTTP_TOKEN, where other machines can reach it
    #[arg(long, help_heading = "HTTP", value_name = "FILE", requires = "http")]
    pub http_token_file: Option<PathBuf>,
}

/// A port that is open, and a hand that puts up there what a peer is doing.
pub struct Shown {
    pub server: Server,
    pub show: Show,
}

impl HttpArgs {
    /// Opens the port, if one is asked for.
    ///
    /// # Errors
    /// It cannot be opened, or may not without a token.
    pub fn open(&self) -> Result<Option<Shown>> {
        let Some(address) = self.http else { return Ok(None) };
        let board = Arc::new(Board::default());
        let token = Token::find(self.http_token_file.as_deref(), TOKEN_VARIABLE).map_err(HttpError::Token)?;
        let server = Server::start(Options { address, token }, board.clone())?;
        let show: Show = Box::new(move |status, history| {
            let id = status.member.short();
            board.show([&id, "", &status.role], status, history);
        });
        Ok(Some(Shown { server, show }))
    }
}
