//! Memory of a BPF array map, shared with the kernel.

use std::{
    fmt, io,
    marker::PhantomData,
    num::NonZeroUsize,
    os::fd::AsFd,
    ptr::NonNull,
    sync::atomic::{AtomicU8, AtomicU32, AtomicU64},
};

use nix::{
    libc,
    sys::mman::{MapFlags, ProtFlags, mmap, munmap},
};

/// The elements of an array map made with `BPF_F_MMAPABLE`, as long as this lives.
///
/// The datapath and other processes read and write the same memory, so there are no references
/// into it: it is read and written by copies and atomics.
pub struct Mapping<T> {
    base: NonNull<T>,
    bytes: NonZeroUsize,
    elements: u32,
    value: PhantomData<T>,
}

/// Types that may be copied out of a map: made of integers alone, so that every pattern of bits is
/// a value.
///
/// # Safety
/// The type has no padding that matters, no references and no invalid bit patterns.
pub unsafe trait Plain: Copy {}

// SAFETY: made of integers.
unsafe impl Plain for prestack_abi::config::Config {}
// SAFETY: made of integers.
unsafe impl Plain for prestack_abi::backend::Backend {}
// SAFETY: made of integers.
unsafe impl Plain for prestack_abi::cache::Index {}
// SAFETY: made of integers.
unsafe impl Plain for prestack_abi::cache::Block {}

impl<T: Plain> Mapping<T> {
    /// Maps the `elements` elements of the map behind `fd`.
    ///
    /// # Errors
    /// The kernel refused: the map is not mmapable, or smaller than that.
    pub fn new(fd: impl AsFd, elements: u32) -> io::Result<Self> {
        const {
            // The kernel lays out elements at multiples of 8 bytes, from the start of a page.
            assert!(size_of::<T>().is_multiple_of(8) && align_of::<T>() <= 4096);
        }
        let bytes = NonZeroUsize::new(size_of::<T>() * elements as usize)
            .ok_or(io::ErrorKind::InvalidInput)?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: the kernel chooses an unused range of addresses.
        let base = unsafe { mmap(None, bytes, access, MapFlags::MAP_SHARED, fd, 0)? };
        Ok(Self {
            base: base.cast(),
            bytes,
            elements,
            value: PhantomData,
        })
    }

    /// Number of elements.
    #[must_use]
    pub const fn len(&self) -> u32 {
        self.elements
    }

    /// Whether there are no elements: there always are.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.elements == 0
    }

    /// Address of an element, which must exist.
    fn at(&self, index: u32) -> *mut T {
        assert!(
            index < self.elements,
            "element {index} of {}",
            self.elements
        );
        // SAFETY: the element lies in the mapping, by the assertion.
        unsafe { self.base.as_ptr().add(index as usize) }
    }

    /// A copy of an element. It may be torn when someone writes at the same time.
    #[must_use]
    pub fn read(&self, index: u32) -> T {
        // SAFETY: the address is valid and aligned, and by `Plain` any bits are a value.
        unsafe { self.at(index).read_volatile() }
    }

    /// Copies `value` to an element, not all at once.
    pub fn write(&self, index: u32, value: T) {
        // SAFETY: the address is valid and aligned, and the memory is writable.
        unsafe { self.at(index).write_volatile(value) }
    }

    /// The eight bytes at `offset` of an element.
    #[must_use]
    pub fn atomic_u64(&self, index: u32, offset: usize) -> &AtomicU64 {
        // SAFETY: `field` gives a valid, aligned address within the mapping, which outlives the
        // reference; in this process the field is accessed by atomics and volatile copies alone.
        unsafe { AtomicU64::from_ptr(self.field(index, offset)) }
    }

    /// The four bytes at `offset` of an element.
    #[must_use]
    pub fn atomic_u32(&self, index: u32, offset: usize) -> &AtomicU32 {
        // SAFETY: as for `atomic_u64`.
        unsafe { AtomicU32::from_ptr(self.field(index, offset)) }
    }

    /// The byte at `offset` of an element.
    #[must_use]
    pub fn atomic_u8(&self, index: u32, offset: usize) -> &AtomicU8 {
        // SAFETY: as for `atomic_u64`.
        unsafe { AtomicU8::from_ptr(self.field(index, offset)) }
    }

    fn field<F>(&self, index: u32, offset: usize) -> *mut F {
        assert!(
            offset + size_of::<F>() <= size_of::<T>() && offset.is_multiple_of(align_of::<F>())
        );
        // SAFETY: the field lies in the element, by the assertion.
        unsafe { self.at(index).cast::<u8>().add(offset).cast() }
    }
}

impl<T> fmt::Debug for Mapping<T> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Mapping({} elements)", self.elements)
    }
}

impl<T> Drop for Mapping<T> {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `new`, and no reference into it outlives `self`.
        let unmapped = unsafe { munmap(self.base.cast::<libc::c_void>(), self.bytes.get()) };
        debug_assert!(unmapped.is_ok());
    }
}
