//! The results of calls.

use std::cell::RefCell;
use std::ffi::{CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The result of a call. After a result other than `CQC_STATUS_OK`, `cqc_last_error` describes the
/// error.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CqcStatus {
    /// The call succeeded.
    Ok = 0,
    /// An argument is null, too small, or not UTF-8, or a structure has an invalid size.
    Argument = 1,
    /// The artifact cannot be read, or it is damaged.
    Artifact = 2,
    /// The artifact cannot do what the request asks for.
    Request = 3,
    /// The progress callback cancelled the call.
    Cancelled = 4,
    /// There is a bug in the library. The handles that were passed must be freed and not used
    /// again.
    Internal = 5,
}

thread_local! {
    static LAST: RefCell<CString> = RefCell::default();
}

/// The status and the text of a call that failed.
pub struct Failed(pub CqcStatus, pub String);

impl Failed {
    pub fn argument(text: impl Into<String>) -> Failed {
        Failed(CqcStatus::Argument, text.into())
    }
}

/// Runs a call without letting a panic pass, and keeps the text of its error for this thread.
pub fn guarded(call: impl FnOnce() -> Result<(), Failed>) -> CqcStatus {
    let ended = catch_unwind(AssertUnwindSafe(call));
    let Failed(status, text) = match ended {
        Ok(Ok(())) => return CqcStatus::Ok,
        Ok(Err(failed)) => failed,
        Err(_) => {
            Failed(CqcStatus::Internal, "internal error in the library; please report it".into())
        }
    };
    let text: Vec<u8> = text.into_bytes().into_iter().filter(|&b| b != 0).collect();
    LAST.with(|last| *last.borrow_mut() = CString::new(text).unwrap_or_default());
    status
}

/// Returns the description, in English, of the last call of this thread that failed. The string is
/// valid until the next call of the thread that fails.
#[unsafe(no_mangle)]
pub extern "C" fn cqc_last_error() -> *const c_char {
    LAST.with(|last| last.borrow().as_ptr())
}
