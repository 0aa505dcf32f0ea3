// A storage account that opens to identities only, with its containers.
@description('Region.')
param location string

@description('Name of the account, 3 to 24 lower case letters and digits.')
@minLength(3)
@maxLength(24)
param name string

@description('Tags of every resource.')
param tags object

@description('How many copies there are, and where.')
@allowed(['Standard_LRS', 'Standard_ZRS', 'Standard_GRS', 'Standard_GZRS'])
param redundancy string

@description('Whether folders are real (Data Lake). An account keeps what it was made with.')
param hierarchical bool = false

@description('Containers to make; none of them is public.')
param containers array

@description('Tables to make.')
param tables array = []

@description('What is deleted by age: objects with `name`, `prefix` (container and path) and `days`.')
param expiries array = []

@description('How many days what was deleted can be brought back.')
@minValue(1)
@maxValue(365)
param softDeleteDays int = 7

@description('Whether only private endpoints and trusted Azure services reach the account.')
param privateNetworking bool

resource account 'Microsoft.Storage/storageAccounts@2024-01-01' = {
  name: name
  location: location
  tags: tags
  kind: 'StorageV2'
  sku: { name: redundancy }
  properties: {
    accessTier: 'Hot'
    allowBlobPublicAccess: false
    allowCrossTenantReplication: false
    allowSharedKeyAccess: false
    defaultToOAuthAuthentication: true
    isHnsEnabled: hierarchical
    minimumTlsVersion: 'TLS1_2'
    supportsHttpsTrafficOnly: true
    publicNetworkAccess: privateNetworking ? 'Disabled' : 'Enabled'
    // Event Grid writes dead letters, and Azure ML its own files, as trusted services with an identity.
    networkAcls: { bypass: 'AzureServices', defaultAction: privateNetworking ? 'Deny' : 'Allow' }
  }
}

// Data Lake has neither versions nor restore to a point in time, so soft delete is what there is for both kinds.
resource blobs 'Microsoft.Storage/storageAccounts/blobServices@2024-01-01' = {
  parent: account
  name: 'default'
  properties: {
    deleteRetentionPolicy: { enabled: true, days: softDeleteDays }
    containerDeleteRetentionPolicy: { enabled: true, days: softDeleteDays }
  }
}

resource made 'Microsoft.Storage/storageAccounts/blobServices/containers@2024-01-01' = [
  for container in containers: {
    parent: blobs
    name: container
    properties: { publicAccess: 'None' }
  }
]

resource tableService 'Microsoft.Storage/storageAccounts/tableServices@2024-01-01' = if (length(tables) > 0) {
  parent: account
  name: 'default'
}

resource table 'Microsoft.Storage/storageAccounts/tableServices/tables@2024-01-01' = [
  for each in tables: {
    parent: tableService
    name: each
  }
]

resource lifecycle 'Microsoft.Storage/storageAccounts/managementPolicies@2024-01-01' = if (length(expiries) > 0) {
  parent: account
  name: 'default'
  properties: {
    policy: {
      rules: [
        for expiry in expiries: {
          name: expiry.name
          enabled: true
          type: 'Lifecycle'
          definition: {
            filters: { blobTypes: ['blockBlob', 'appendBlob'], prefixMatch: [expiry.prefix] }
            actions: { baseBlob: { delete: { daysAfterModificationGreaterThan: expiry.days } } }
          }
        }
      ]
    }
  }
  // The policy of an account is refused while the account's Blob service is being changed.
  dependsOn: [blobs]
}

output id string = account.id
output name string = account.name
output blobEndpoint string = account.properties.primaryEndpoints.blob
output url string = 'https://${account.name}.blob.${environment().suffixes.storage}'
