// Compiled kernels: shared objects that bin/nvcc made, or bin/ptx.
#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "api.h"

namespace cusim {

static constexpr unsigned kCudaMachine = 190;  // ELF machine number of cubins

CUresult load_module(Context *context, const char *image, LoadedModule **loaded) {
    Elf64_Ehdr header;
    // a fatbin or cubin of the real compiler is an image for other devices
    if (memcmp(image, "\x50\xed\x55\xba", 4) == 0) return CUDA_ERROR_NO_BINARY_FOR_GPU;
    if (memcmp(image, ELFMAG, SELFMAG) != 0) return CUDA_ERROR_INVALID_IMAGE;
    memcpy(&header, image, sizeof header);
    if (header.e_machine == kCudaMachine || header.e_type != ET_DYN) return CUDA_ERROR_NO_BINARY_FOR_GPU;
    // the size of the image is not given; the section table is at its end
    const size_t size = header.e_shoff + size_t(header.e_shentsize) * header.e_shnum;

    const char *folder = getenv("TMPDIR");
    std::string path = std::string(folder && *folder ? folder : "/tmp") + "/cusim-XXXXXX";
    const int file = mkstemp(path.data());
    const bool written = file >= 0 && write(file, image, size) == ssize_t(size);
    if (file >= 0) close(file);
    void *handle = written ? dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL) : nullptr;
    if (!handle) fault(CUDA_ERROR_INVALID_IMAGE, std::string("cannot load a module: ") + (written ? dlerror() : path));
    if (file >= 0) unlink(path.c_str());
    if (!handle) return CUDA_ERROR_INVALID_IMAGE;

    auto describe = reinterpret_cast<void (*)(Module *)>(dlsym(handle, "cusim_module"));
    if (!describe) {
        dlclose(handle);
        return CUDA_ERROR_NO_BINARY_FOR_GPU;
    }
    auto module = new LoadedModule{};
    module->context = context;
    module->handle = handle;
    describe(&module->module);
    const link_map *map = static_cast<link_map *>(handle);
    module->begin = UINTPTR_MAX;
    for (unsigned i = 0; i < header.e_phnum; i++) {
        Elf64_Phdr segment;
        memcpy(&segment, image + header.e_phoff + i * header.e_phentsize, sizeof segment);
        if (segment.p_type != PT_LOAD) continue;
        module->begin = std::min<uintptr_t>(module->begin, map->l_addr + segment.p_vaddr);
        module->end = std::max<uintptr_t>(module->end, map->l_addr + segment.p_vaddr + segment.p_memsz);
    }
    for (const Kernel *kernel = module->module.kernels; kernel; kernel = kernel->next) {
        auto add = [&](const std::string &name) {
            auto function = std::make_unique<Function>();
            *function = {module, kernel, kernel->name};
            module->functions[name] = std::move(function);
        };
        add(kernel->name);
        Dl_info symbol;  // without extern "C", CUDA knows a kernel by its mangled name
        if (dladdr(kernel->function, &symbol) && symbol.dli_sname && strcmp(symbol.dli_sname, kernel->name) != 0) {
            add(symbol.dli_sname);
            module->functions.erase(kernel->name);
        }
    }
    context->modules.insert(module);
    *loaded = module;
    return CUDA_SUCCESS;
}

void unload_module(LoadedModule *module) {
    module->context->modules.erase(module);
    dlclose(module->handle);
    delete module;
}

Function *find_function(LoadedModule *module, const char *name) {
    auto it = module->functions.find(name);
    return it == module->functions.end() ? nullptr : it->second.get();
}

}  // namespace cusim

namespace {

LoadedModule *module_of(CUmodule handle) {
    auto module = reinterpret_cast<LoadedModule *>(handle);
    for (Context *context : contexts)
        if (context->modules.count(module)) return module;
    return nullptr;
}

size_t static_shared(const Function *f) {
    const Module &m = f->module->module;
    return m.static_shared_end - m.static_shared_begin;
}

CUresult load(CUmodule *handle, const void *image) {
    CONTEXT;
    if (!handle || !image) return CUDA_ERROR_INVALID_VALUE;
    if (CUresult bad = unsafe("a module is loaded")) return bad;
    std::string compiled;
    auto bytes = static_cast<const char *>(image);
    if (settings.ptx && is_text(bytes)) {
        if (CUresult bad = compile_ptx(bytes, &compiled)) return bad;
        bytes = compiled.data();
    }
    LoadedModule *module = nullptr;
    CUresult result = load_module(context, bytes, &module);
    if (result == CUDA_SUCCESS) *handle = reinterpret_cast<CUmodule>(module);
    return result;
}

// Both ways to pass arguments give one packed buffer. A size that does not match the kernel's signature is
// refused.
CUresult pack(const Kernel *kernel, void **parameters, void **extra, std::vector<char> *packed) {
    packed->resize(kernel->total + 1);  // never empty, so that there is an address
    if (parameters) {
        for (unsigned i = 0; i < kernel->parameters; i++)
            memcpy(packed->data() + kernel->offsets[i], parameters[i], kernel->sizes[i]);
        return CUDA_SUCCESS;
    }
    const void *buffer = nullptr;
    size_t size = 0;
    for (; extra && *extra != CU_LAUNCH_PARAM_END; extra += 2) {
        if (*extra == CU_LAUNCH_PARAM_BUFFER_POINTER) buffer = extra[1];
        if (*extra == CU_LAUNCH_PARAM_BUFFER_SIZE) size = *static_cast<size_t *>(extra[1]);
    }
    if (size != kernel->total) {
        return fault(CUDA_ERROR_INVALID_VALUE,
                     format("kernel %s: %zu bytes of arguments given, its parameters take %zu", kernel->name, size,
                            kernel->total));
    }
    if (size) memcpy(packed->data(), buffer, size);
    return CUDA_SUCCESS;
}

}  // namespace

API cuModuleLoadData(CUmodule *module, const void *image) { return load(module, image); }
API cuModuleLoadDataEx(CUmodule *module, const void *image, unsigned, CUjit_option *, void **) {
    return load(module, image);
}
API cuModuleLoadFatBinary(CUmodule *module, const void *image) { return load(module, image); }

API cuModuleLoad(CUmodule *module, const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file) return CUDA_ERROR_FILE_NOT_FOUND;
    std::vector<char> image;
    char part[4096];
    for (size_t n; (n = fread(part, 1, sizeof part, file)) > 0;) image.insert(image.end(), part, part + n);
    fclose(file);
    if (image.size() < sizeof(Elf64_Ehdr)) return CUDA_ERROR_INVALID_IMAGE;
    image.push_back(0);  // terminates a text
    return load(module, image.data());
}

API cuModuleUnload(CUmodule handle) {
    CONTEXT;
    LoadedModule *module = module_of(handle);
    if (!module) return CUDA_ERROR_INVALID_HANDLE;
    blocks("cuModuleUnload");
    finish(module->context);
    unload_module(module);
    return context->error;
}

API cuModuleGetFunction(CUfunction *function, CUmodule handle, const char *name) {
    CONTEXT;
    LoadedModule *module = module_of(handle);
    if (!module || !function || !name) return CUDA_ERROR_INVALID_VALUE;
    *function = reinterpret_cast<CUfunction>(find_function(module, name));
    return *function ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

API cuModuleGetGlobal_v2(CUdeviceptr *address, size_t *size, CUmodule handle, const char *name) {
    CONTEXT;
    LoadedModule *module = module_of(handle);
    if (!module) return CUDA_ERROR_INVALID_HANDLE;
    void *found = dlsym(module->handle, name);
    Dl_info info;
    ElfW(Sym) *symbol = nullptr;
    if (!found || !dladdr1(found, &info, reinterpret_cast<void **>(&symbol), RTLD_DL_SYMENT) || !symbol ||
        ELF64_ST_TYPE(symbol->st_info) != STT_OBJECT)
        return CUDA_ERROR_NOT_FOUND;
    const auto base = reinterpret_cast<uintptr_t>(found);
    module->globals[base] = {base, symbol->st_size, Kind::kGlobal, context, context->number, context->device, 0, 0};
    if (address) *address = base;
    if (size) *size = symbol->st_size;
    return CUDA_SUCCESS;
}

API cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction handle) {
    CONTEXT;
    const auto function = reinterpret_cast<Function *>(handle);
    switch (attribute) {
        case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
            *value = function->kernel->most_threads ? int(function->kernel->most_threads) : 1024;
            break;
        case CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES:
            *value = int(static_shared(function));
            break;
        case CU_FUNC_ATTRIBUTE_NUM_REGS:
            *value = 32;
            break;
        case CU_FUNC_ATTRIBUTE_PTX_VERSION:
        case CU_FUNC_ATTRIBUTE_BINARY_VERSION:
            *value = 90;
            break;
        case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES:
            *value = function->max_dynamic_shared;
            break;
        default:
            *value = 0;
    }
    return CUDA_SUCCESS;
}

API cuFuncSetAttribute(CUfunction handle, CUfunction_attribute attribute, int value) {
    CONTEXT;
    auto function = reinterpret_cast<Function *>(handle);
    if (attribute == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) {
        if (value < 0 || size_t(value) > function->module->module.dynamic_shared_size) return CUDA_ERROR_INVALID_VALUE;
        function->max_dynamic_shared = value;
    }
    return CUDA_SUCCESS;
}

API cuFuncSetCacheConfig(CUfunction, CUfunc_cache) { return CUDA_SUCCESS; }

// PyCUDA still makes these calls of the old launch interface before every cuLaunchKernel, which repeats the values.
API cuFuncSetBlockShape(CUfunction, int, int, int) { return CUDA_SUCCESS; }
API cuFuncSetSharedSize(CUfunction, unsigned) { return CUDA_SUCCESS; }

API cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks_, CUfunction, int block, size_t) {
    if (block < 1) return CUDA_ERROR_INVALID_VALUE;
    *blocks_ = std::max(1, 2048 / block);
    return CUDA_SUCCESS;
}

API cuLaunchKernel(CUfunction handle, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, CUstream stream_handle, void **parameters, void **extra) {
    CONTEXT;
    auto function = reinterpret_cast<Function *>(handle);
    Stream *stream = find_stream(stream_handle, context);
    if (!function || !stream || function->module->context != context) return CUDA_ERROR_INVALID_HANDLE;
    const bool grid_fits = gx && gy && gz && gx <= 0x7fffffffu && gy <= 65535 && gz <= 65535;
    const bool block_fits = bx && by && bz && bx <= 1024 && by <= 1024 && bz <= 64 && bx * by * bz <= 1024;
    const bool shared_fits =
        shared <= unsigned(function->max_dynamic_shared) && shared + static_shared(function) <= 227 * 1024;
    if (!grid_fits || !block_fits || !shared_fits) return CUDA_ERROR_INVALID_VALUE;
    const unsigned most = function->kernel->most_threads;  // .maxntid and .reqntid of PTX
    if (most && (bx * by * bz > most || (function->kernel->exactly && bx * by * bz < most))) return CUDA_ERROR_INVALID_VALUE;

    auto launch = std::make_shared<Launch>();
    *launch = {function, {gx, gy, gz}, {bx, by, bz}, shared, {}};
    if (CUresult bad = pack(function->kernel, parameters, extra, &launch->arguments)) return bad;
    counters.launched++;
    counters.launches.push_back({function->name, {gx, gy, gz}, {bx, by, bz}, shared});
    if (counters.launches.size() > 65536) counters.launches.pop_front();
    submit(stream, "kernel", [context, launch] { return run_kernel(context, *launch); });
    return settings.eager ? context->error : CUDA_SUCCESS;
}
