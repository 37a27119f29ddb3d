//! What goes over the wire is counted, blobs apart from all else.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blob_s_bytes_are_told_from_the_talk_about_it() {
    let bytes = content(4 << 20);
    for transport in [TCP, QUIC] {
        let provider = start(config(1, transport, &[])).await;
        let (hash, size) = provider.store.put_blob(&bytes).unwrap();
        let mut reader = start(config(2, transport, &[&provider.address])).await;
        reader.connected_to(provider.id()).await;
        let before = reader.handle.traffic();
        assert!(before.control_in > 100 && before.control_out > 100 && before.blob_in == 0, "{before:?}");
        reader.handle.fetch(hash, size, vec![provider.id()]).unwrap();
        reader.download(hash).await.unwrap();
        let (read, served) = (reader.handle.traffic(), provider.handle.traffic());
        for blob in [read.blob_in, served.blob_out] {
            assert!((size..size + size / 50).contains(&blob), "{blob} of {size}");
        }
        for control in [read.control_in, read.control_out, served.control_in, served.control_out] {
            assert!(control < 64 << 10, "{control}");
        }
        assert!(read.blob_out > 0 && read.blob_out < 64 << 10, "questions are counted, too");
    }
}
