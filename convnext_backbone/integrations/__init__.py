"""ConvNeXt backbones in the shapes that other libraries' detectors and segmentors take.

One module a library, which imports that library; nothing here is imported by the rest of the
package. docs/integrations.md shows each in use.
"""
