"""Headers that every toolchain of a platform upstream supports brings: ISO C and C++, POSIX, systems and backends."""

from __future__ import annotations

_C = """assert complex ctype errno fenv float inttypes iso646 limits locale math setjmp signal stdalign stdarg stdatomic
stdbit stdbool stdckdint stddef stdint stdio stdlib stdnoreturn string tgmath threads time uchar wchar wctype"""

_CXX = """algorithm any array atomic barrier bit bitset cassert ccomplex cctype cerrno cfenv cfloat charconv chrono
cinttypes ciso646 climits clocale cmath codecvt compare complex concepts condition_variable coroutine csetjmp csignal
cstdalign cstdarg cstdbool cstddef cstdint cstdio cstdlib cstring ctgmath ctime cuchar cwchar cwctype deque exception
execution expected filesystem flat_map flat_set format forward_list fstream functional future generator
initializer_list iomanip ios iosfwd iostream istream iterator latch limits list locale map mdspan memory
memory_resource mutex new numbers numeric optional ostream print queue random ranges ratio regex scoped_allocator
semaphore set shared_mutex source_location span spanstream sstream stack stacktrace stdexcept stdfloat stop_token
streambuf string string_view strstream syncstream system_error thread tuple type_traits typeindex typeinfo
unordered_map unordered_set utility valarray variant vector version cxxabi.h"""

_POSIX = """aio arpa/inet cpio dirent dlfcn fcntl fmtmsg fnmatch ftw glob grp iconv langinfo libgen monetary mqueue
ndbm net/if netdb netinet/in netinet/tcp nl_types poll pthread pwd regex sched search semaphore spawn strings stropts
sys/ipc sys/mman sys/msg sys/resource sys/select sys/sem sys/shm sys/socket sys/stat sys/statvfs sys/time sys/times
sys/types sys/uio sys/un sys/utsname sys/wait syslog tar termios unistd utime utmpx wordexp"""

_SYSTEMS = """alloca endian err execinfo features getopt ifaddrs link malloc mntent pty sysexits ucontext byteswap
sys/auxv sys/epoll sys/eventfd sys/file sys/inotify sys/ioctl sys/param sys/personality sys/prctl sys/ptrace sys/random
sys/sendfile sys/signalfd sys/stat sys/statfs sys/syscall sys/sysctl sys/sysinfo sys/sysmacros sys/timerfd sys/vfs
sys/cdefs sys/event sys/types asm/hwcap asm/hwprobe asm/unistd asm/prctl mach/mach mach/mach_time mach-o/dyld os/log
TargetConditionals AvailabilityMacros dispatch/dispatch libkern/OSByteOrder"""

_COMPILERS = """immintrin x86intrin xmmintrin emmintrin pmmintrin tmmintrin smmintrin nmmintrin wmmintrin ammintrin
avxintrin avx2intrin cpuid intrin mm_malloc arm_neon arm_sve arm_sme arm_acle arm_fp16 arm_bf16 altivec vecintrin
lsxintrin lasxintrin lasx_intrin riscv_vector riscv_bitmanip wasm_simd128 omp unwind cet hvx_hexagon_protos
sanitizer/asan_interface sanitizer/tsan_interface valgrind/valgrind"""

_WINDOWS = """windows winsock2 ws2tcpip winapifamily windef winbase winnt winioctl psapi io direct
process processthreadsapi memoryapi sysinfoapi shellapi shlobj fcntl conio tchar intrin bcrypt dbghelp versionhelpers
share crtdbg powerbase signal"""

_PREFIXES = (
    "Accelerate/",
    "CL/",
    "CoreFoundation/",
    "CoreML/",
    "Foundation/",
    "IOKit/",
    "Metal/",
    "MetalPerformanceShaders/",
    "OpenCL/",
    "android/",
    "asm/",
    "bits/",
    "cooperative_groups",
    "cub/",
    "cuda/",
    "experimental/",
    "hip/",
    "hipblas/",
    "linux/",
    "mach/",
    "musa_",
    "rccl/",
    "rocblas/",
    "rocwmma/",
    "sycl/",
    "thrust/",
    "vk_video/",
    "vulkan/",
)

_BACKENDS = """cuda cuda_bf16 cuda_fp16 cuda_fp4 cuda_fp6 cuda_fp8 cuda_runtime cuda_runtime_api cublas_v2
cublasLt curand cusparse cufft cupti device_launch_parameters driver_types mma nccl nvml nvtx3/nvToolsExt vector_types
cuda_pipeline cuda_awbarrier library_types hipblas rocblas rccl musa mublas mccl"""

_KNOWN = frozenset(
    [f"{name}.h" for text in (_C, _POSIX, _SYSTEMS, _COMPILERS, _WINDOWS, _BACKENDS) for name in text.split()]
    + _CXX.split()
    # Windows does not look at case, and upstream writes it either way.
    + ["Windows.h", "WinSock2.h", "Psapi.h", "Shlobj.h"]
)


def is_known(name: str) -> bool:
    """Whether ``#include <name>`` needs no library beyond the system's, the compiler's and the backend's own."""
    return name in _KNOWN or name.startswith(_PREFIXES)
