//! The page, its style and its scripts, as they lie in `assets/`.

use std::sync::Arc;

use axum::Router;
use axum::http::header;
use axum::routing::get;

use super::board::Board;

/// Path, type and text of each.
const ASSETS: [(&str, &str, &str); 7] = [
    ("/", "text/html; charset=utf-8", include_str!("assets/index.html")),
    ("/style.css", "text/css; charset=utf-8", include_str!("assets/style.css")),
    ("/dashboard.js", SCRIPT, include_str!("assets/dashboard.js")),
    ("/stream.js", SCRIPT, include_str!("assets/stream.js")),
    ("/panels.js", SCRIPT, include_str!("assets/panels.js")),
    ("/charts.js", SCRIPT, include_str!("assets/charts.js")),
    ("/words.js", SCRIPT, include_str!("assets/words.js")),
];
const SCRIPT: &str = "text/javascript; charset=utf-8";

pub fn routes() -> Router<Arc<Board>> {
    ASSETS.into_iter().fold(Router::new(), |router, (path, kind, text)| {
        router.route(path, get(move || async move { ([(header::CONTENT_TYPE, kind)], text) }))
    })
}
